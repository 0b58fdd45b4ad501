//! What is said about mistakes, to the letter: where, which key, what to do.

use super::*;

#[test]
fn each_mistake_is_told_with_its_place_its_key_and_what_to_do() {
    for (text, said) in MISTAKES {
        assert_eq!(refused(&format!("{text}\n{LEAST}"), &[("K", "sk-1")]), *said, "{text}");
    }
}

#[rustfmt::skip] // a table
const MISTAKES: &[(&str, &str)] = &[
    ("server.listn = '127.0.0.1:1'", "t.toml:1:8: server.listn: unknown key; did you mean `listen`?"),
    ("server.zzz = 1", "t.toml:1:8: server.zzz: unknown key; the keys here are listen, admin, max_body, body_memory, max_connections, threads, drain, held_max, tls, public_url"),
    ("severs.listen = 1", "t.toml:1:1: severs: unknown key; did you mean `server`?"),
    ("server.listen = 8400", "t.toml:1:17: server.listen: must be a text in quotes, not a whole number"),
    ("server.listen = 'localhost:9'", r#"t.toml:1:17: server.listen: must be an IP address and a port, such as "127.0.0.1:9", not "localhost:9""#),
    ("server.listen = ':9'", r#"t.toml:1:17: server.listen: must be an IP address and a port, such as "0.0.0.0:9", not ":9""#),
    ("server.listen = '0.0.0.0:80'", r#"t.toml: access: 0.0.0.0:80 can be reached from elsewhere and there are no tenants: add [tenants.<name>] with keys = [{ env = "NAME_OF_A_VARIABLE" }], or set server.listen to a loopback address such as "127.0.0.1:8400""#),
    ("server.admin = '127.0.0.1:8400'", "t.toml:1:16: server.admin: 127.0.0.1:8400 is the address of both listeners: give one of them another port"),
    ("server.max_body = 1.5", r#"t.toml:1:19: server.max_body: must be a size such as "64MiB", or a number of bytes, not a number with a fraction"#),
    ("server.max_body = -1", r#"t.toml:1:19: server.max_body: must be a size such as "64MiB", "200MB" or a number of bytes"#),
    ("server.max_body = '32 megabytes'", r#"t.toml:1:19: server.max_body: must be a size such as "64MiB", "200MB" or a number of bytes"#),
    ("server.max_body = '2GiB'", "t.toml:1:19: server.max_body: must be from 1KiB to 1GiB, not 2GiB"),
    ("server.max_connections = '20000'", "t.toml:1:26: server.max_connections: must be a whole number, not a text: leave out the quotes"),
    ("server.max_connections = 0", "t.toml:1:26: server.max_connections: must be from 1 to 1000000, not 0"),
    ("server.max_connections = 99999999999999999999999999999999999999999", "t.toml:1:26: server.max_connections: must be a whole number, not a number too large"),
    ("server.max_connections = []", "t.toml:1:26: server.max_connections: must be a whole number, not a list"),
    ("server.drain = 30", r#"t.toml:1:16: server.drain: must be a duration in quotes, such as "30s", not a whole number"#),
    ("server.drain = 'soon'", r#"t.toml:1:16: server.drain: must be a duration such as "30s", "15m", "24h" or "1h30m", not "soon""#),
    ("server.drain = '400d'", r#"t.toml:1:16: server.drain: must be at most "365d", not "400d""#),
    ("store.keep_results = '0s'", r#"t.toml:1:22: store.keep_results: must be longer than zero, not "0s""#),
    ("store.folder = ''", "t.toml:1:16: store.folder: must be a path, not an empty text"),
    ("store = 1", "t.toml:1:9: store: must be a table, not a whole number"),
    ("server.public_url = 'offpeak.example.com'", r#"t.toml:1:21: server.public_url: must be a URL such as "https://offpeak.example.com""#),
    ("access.open = 'yes'", "t.toml:1:15: access.open: must be true or false, not a text"),
    ("access.open = false", r#"t.toml:1:1: access: nobody could call: add a tenant [tenants.<name>] with keys = [{ env = "NAME_OF_A_VARIABLE" }], or set open = true"#),
    ("access.default_sla = 'now'", r#"t.toml:1:22: access.default_sla: must be "realtime", "deferrable" or a duration such as "30s", "15m", "24h" or "1h30m", not "now""#),
    ("access.default_sla = '0s'", r#"t.toml:1:22: access.default_sla: must be longer than zero, not "0s""#),
    ("access.delivery = 'mail'", r#"t.toml:1:19: access.delivery: must be "held" or "ticket", not "mail""#),
    ("access.requests_per_minute = 0", "t.toml:1:30: access.requests_per_minute: must be from 1 to 4294967295, not 0"),
    ("access.budget.day_usd = 1.5", r#"t.toml:1:25: access.budget.day_usd: must be dollars, as a whole number or in quotes such as "12.50", not a number with a fraction"#),
    ("access.budget.day_usd = '-1'", "t.toml:1:25: access.budget.day_usd: must not be below zero"),
    ("access.budget.month_usd = 'much'", r#"t.toml:1:27: access.budget.month_usd: "much" is not an amount: write a number of dollars such as 12.50 or 1.5e-07"#),
    ("tenants.t = {}", r#"t.toml:1:9: tenants.t.keys: this is missing: add it, such as keys = [{ env = "NAME_OF_A_VARIABLE" }]"#),
    ("tenants.t.keys = ['sk-oops']", r#"t.toml:1:19: tenants.t.keys[0]: a secret does not stand in the configuration itself: write { env = "NAME_OF_A_VARIABLE" } or { file = "/path/of/a/file" }, and put it there"#),
    ("tenants.t.keys = [{ env = 'K' }, { env = 'K' }]", "t.toml:1:34: tenants.t.keys[1]: is the same key as tenants.t.keys[0]: a key names one tenant; remove one"),
    ("tenants.'a b'.keys = [{ env = 'K' }]", "t.toml:1:9: tenants.a b: a name is 1 to 64 letters, digits, hyphens and underscores: rename it"),
    ("access.open = true\ntenants.t.keys = [{ env = 'K' }]", "t.toml:1:1: access: open access and tenants exclude each other: remove [access] (each tenant has settings of its own), or remove the tenants"),
    ("backends.b.api_key = 'sk-oops'", r#"t.toml:1:22: backends.b.api_key: a secret does not stand in the configuration itself: write { env = "NAME_OF_A_VARIABLE" } or { file = "/path/of/a/file" }, and put it there"#),
    ("backends.b.api_key = { env = 'NOPE' }", "t.toml:1:30: backends.b.api_key.env: the environment variable NOPE is not set: set it for the daemon, or name another one"),
    ("backends.b.api_key = { file = '/nope/key' }", "t.toml:1:31: backends.b.api_key.file: cannot read /nope/key: No such file or directory (os error 2); mend the path or the file's permissions"),
    ("backends.b.api_key = { env = 'K', file = '/k' }", "t.toml:1:22: backends.b.api_key: has env and file: keep the one that holds the secret"),
    ("backends.b.api_key = {}", r#"t.toml:1:22: backends.b.api_key: must say where the secret is: env = ".." or file = "..""#),
    ("backends.b.api_key = { enf = 'K' }", "t.toml:1:24: backends.b.api_key.enf: unknown key; did you mean `env`?"),
    ("backends.b.provider = 'openia'", r#"t.toml:1:23: backends.b.provider: there is no provider plugin "openia"; did you mean `openai`?"#),
    ("backends.b.provider = 'cohere'", r#"t.toml:1:23: backends.b.provider: there is no provider plugin "cohere"; there are anthropic, openai, vllm; others come from a file named in [plugins.providers.<name>]"#),
    ("backends.b.config = 'x'", "t.toml:1:21: backends.b.config: must be a table, not a text"),
    ("backends.b.config.poll_ms = 0", "t.toml:1:29: backends.b.config.poll_ms: must be above zero: without a pause the provider would be called in a loop; leave it out for the usual pause, or give milliseconds"),
    ("backends.b.config = { retry_ms = 1, retry_max_ms = 0 }", "t.toml:1:52: backends.b.config.retry_max_ms: must be above zero: without a pause the provider would be called in a loop; leave it out for the usual pause, or give milliseconds"),
    ("backends.b.config.x = inf", "t.toml:1:23: backends.b.config: holds a number that JSON cannot: write it as a text"),
    ("backends.c.base_url = 'ftp://x'\nbackends.c.models = ['*']", r#"t.toml:1:23: backends.c.base_url: must begin with http:// or https://, such as "https://api.openai.com""#),
    ("backends.c.base_url = 'https://me:pw@x'\nbackends.c.models = ['*']", "t.toml:1:23: backends.c.base_url: must not hold credentials: a backend's credential is its api_key"),
    ("backends.c.base_url = 'https://x/?a=1'\nbackends.c.models = ['*']", "t.toml:1:23: backends.c.base_url: must end with the path: leave out what follows ? or #"),
    ("backends.c.base_url = 'x'\nbackends.c.models = []", r#"t.toml:1:23: backends.c.base_url: must be a URL such as "https://api.openai.com"
t.toml:2:21: backends.c.models: must name at least one"#),
    ("backends.c.models = ['']", r#"t.toml:1:10: backends.c.base_url: this is missing: add it, such as base_url = "https://api.openai.com"
t.toml:1:22: backends.c.models[0]: must not be empty: remove it or fill it in"#),
    ("backends.c = 1", "t.toml:1:14: backends.c: must be a table, not a whole number"),
    ("lanes.max_running = 0", "t.toml:1:21: lanes.max_running: must be from 1 to 10000, not 0"),
    ("plugins.router.file = '/nope.wasm'", "t.toml:1:23: plugins.router.file: cannot find /nope.wasm: No such file or directory (os error 2); mend the path"),
    ("plugins.router.file = '/'", "t.toml:1:23: plugins.router.file: / is not a file: name a file"),
    ("plugins.router.sha256 = 'abc'", "t.toml:1:25: plugins.router.sha256: must be a SHA-256 in hex, 64 digits: `offpeak plugin check FILE` and `sha256sum FILE` tell it"),
    ("plugins.router.on_failure = 'ignore'", r#"t.toml:1:29: plugins.router.on_failure: must be "bundled" or "reject", not "ignore""#),
    ("plugins.router.memory = '8GiB'", "t.toml:1:25: plugins.router.memory: must be from 1MiB to 4GiB, not 8GiB"),
    ("plugins.providers.other = {}", r#"t.toml:1:19: plugins.providers.other.file: this is missing: add it, such as file = "/path/of/plugin.wasm""#),
    ("retry.base = '10m'", "t.toml:1:1: retry: cap is the longest delay and shorter than base, the first one: make cap longer"),
    ("log.level = 'infoo'", r#"t.toml:1:13: log.level: "infoo" is not a level; did you mean `info`?"#),
    ("log.level = 'info,offpeak=loud'", r#"t.toml:1:13: log.level: "info,offpeak=loud" is not a filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5; write a level such as "info", or levels by module such as "info,offpeak=debug""#),
    ("log.format = 'xml'", r#"t.toml:1:14: log.format: must be "text" or "json", not "xml""#),
    ("a = [", "t.toml:2:1: not TOML: string values must be quoted, expected literal string\nt.toml:3:1: not TOML: missing comma between array elements, expected `,`"),
    ("a = 1\na = 2", "t.toml:2:1: not TOML: duplicate key"),
    ("backends.b.api_key = sk-oops", "t.toml:1:22: not TOML: string values must be quoted, expected literal string"),
];

#[test]
fn a_configuration_needs_a_backend() {
    assert_eq!(
        refused("", &[]),
        "t.toml: backends: there is no backend, so no request could be answered: add [backends.<name>] with base_url = \
         \"https://api.openai.com\", models = [\"gpt-*\"] and api_key = { env = \"OPENAI_API_KEY\" }"
    );
    assert_eq!(
        refused("[[backends]]\nname = 'x'\n", &[]),
        "t.toml:1:1: backends: must be a table, not a list of tables: write [backends] or [backends.<name>] instead of \
         [[backends]]"
    );
    for tenants in ["tenants = 1", "[[tenants]]\nname = 'x'"] {
        let said = refused(&format!("server.listen = '0.0.0.0:1'\n{LEAST}{tenants}\n"), &[]);
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file_and_then_of_the_variables() {
    let text = "[retry]\nmax_attempts = 0\n[server]\nlisten = '0.0.0.0:1'\nadmn = 'x'\n\
                [backends.openai]\nbase_ulr = 'https://x'\nmodels = 'gpt'\n";
    let variables = [
        ("OFFPEAK_SERVER__LISTN", "x"),
        ("OFFPEAK_SERVER__DRAIN", "x"),
        ("OFFPEAK_SERVER__HELD_MAX", "many"),
        ("OFFPEAK_SERVER__MAX_BODY__X", "1"),
        ("OFFPEAK_LOGG__LEVEL", "x"),
        ("OFFPEAK_RETRY", "x"),
        ("OFFPEAK_LOG__ZZZ", "x"),
        ("OFFPEAK_ACCESS__OPEN", "1"),
        ("OFFPEAK_PLUGINS__ROUTER", "x"),
    ];
    let said = [
        "t.toml: access: 0.0.0.0:1 can be reached from elsewhere and there are no tenants: add [tenants.<name>] with \
         keys = [{ env = \"NAME_OF_A_VARIABLE\" }], or set server.listen to a loopback address such as \
         \"127.0.0.1:8400\"",
        "t.toml:2:16: retry.max_attempts: must be from 1 to 100, not 0",
        "t.toml:5:1: server.admn: unknown key; did you mean `admin`?",
        "t.toml:6:11: backends.openai.base_url: this is missing: add it, such as base_url = \"https://api.openai.com\"",
        "t.toml:7:1: backends.openai.base_ulr: unknown key; did you mean `base_url`?",
        "t.toml:8:10: backends.openai.models: must be a list in brackets, not a text",
        "OFFPEAK_ACCESS__OPEN: access.open: must be true or false",
        "OFFPEAK_LOGG__LEVEL: logg: unknown key; did you mean `OFFPEAK_LOG__LEVEL`?",
        "OFFPEAK_LOG__ZZZ: log.zzz: unknown key; the keys here are format, level",
        "OFFPEAK_PLUGINS__ROUTER: plugins.router: must be a table, not a text",
        "OFFPEAK_SERVER__DRAIN: server.drain: must be a duration such as \"30s\", \"15m\", \"24h\" or \"1h30m\", not \"x\"",
        "OFFPEAK_SERVER__HELD_MAX: server.held_max: must be a whole number",
        "OFFPEAK_SERVER__LISTN: server.listn: unknown key; did you mean `OFFPEAK_SERVER__LISTEN`?",
        "OFFPEAK_SERVER__MAX_BODY__X: server.max_body: must be a size such as \"64MiB\", or a number of bytes, not a table",
    ];
    assert_eq!(refused(text, &variables).lines().collect::<Vec<_>>(), said);
}

#[test]
fn no_secret_is_quoted() {
    let said = MISTAKES.iter().filter(|(text, _)| text.contains("sk-oops")).map(|(_, said)| said);
    assert!(
        said.clone().count() == 3 && !said.clone().any(|said| said.contains("oops")),
        "{:?}",
        said.collect::<Vec<_>>()
    );
    let variables = [
        ("OFFPEAK_BACKENDS__B__API_KEY", "sk-\u{7}oops"),
        ("OFFPEAK_TENANTS__T__KEYS", "{ env = 'sk-oops' }"),
    ];
    let said = refused(LEAST, &variables);
    assert!(said.contains("holds control characters") && !said.contains("sk-\u{7}oops"), "{said}");
}
