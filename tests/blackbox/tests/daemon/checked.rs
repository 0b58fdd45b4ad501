//! What `offpeak check` says of a configuration, beside what a start with the same one does.

use std::collections::BTreeMap;
use std::path::Path;

use offpeak::app::{self, App};
use offpeak::config::{Config, WithoutSecrets};
use rcgen::generate_simple_self_signed;
use tempfile::TempDir;

const LEAST: &str = r#"
server.listen = "127.0.0.1:0"
server.admin = "127.0.0.1:0"
access.open = true

[backends.b]
base_url = "http://127.0.0.1:9"
api_key = { env = "PROVIDER_KEY" }
models = ["*"]
"#;

/// A folder with files for configurations to name.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn config(&self, settings: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let data = self.0.path().join("data");
        let has_folder = settings.contains("store.folder");
        let folder =
            if has_folder { String::new() } else { format!("store.folder = '{}'\n", data.display()) };
        // Dotted keys stand before the first table.
        let text = format!("plugins.cache = '{}'\n{folder}{settings}\n{LEAST}", cache().display());
        let mut variables: BTreeMap<String, String> =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        variables.entry("PROVIDER_KEY".to_owned()).or_insert_with(|| "sk-of-the-provider".to_owned());
        Config::from_text("offpeak.toml", &text, &variables).map_err(|errors| errors.to_string())
    }

    /// Both refuse it, in the same words.
    async fn refuses(&self, settings: &str, env: &[(&str, &str)]) -> String {
        let config = match self.config(settings, env) {
            Ok(config) => config,
            // Both read the configuration first.
            Err(error) => return error,
        };
        let checked = app::check(&config).err().map(|error| error.to_string());
        let started = App::open(&config).await.err().map(|error| error.to_string());
        assert_eq!(checked, started, "{settings}");
        checked.expect(settings)
    }
}

fn cache() -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_start_would_take_is_taken_and_nothing_is_left_behind() {
    let place = Place::new();
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let settings = format!(
        "server.tls.certificate = '{}'\nserver.tls.key = '{}'\ncosts.prices = '{}'",
        place.file("chain.pem", &made.cert.pem()),
        place.file("key.pem", &made.signing_key.serialize_pem()),
        place.file("prices.json", r#"{"m": {"input_cost_per_token": 1e-6}}"#),
    );
    let alerts = "alerts.url = 'https://hooks.example.com/x'\nalerts.secret.env = 'HOOK'";
    let settings = format!("{settings}\n{alerts}");
    let config = place.config(&settings, &[("HOOK", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]).unwrap();
    app::check(&config).unwrap();
    assert!(!config.store.folder.exists());
    // Beside a daemon at work, too.
    let app = App::open(&config).await.unwrap();
    app::check(&config).unwrap();
    drop(app);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_tls_that_are_missing_or_no_pair_are_refused_before_a_start() {
    let place = Place::new();
    let make = || generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (one, other) = (make(), make());
    let chain = place.file("chain.pem", &one.cert.pem());
    let key = place.file("key.pem", &one.signing_key.serialize_pem());
    let wrong_key = place.file("other.pem", &other.signing_key.serialize_pem());
    let tls =
        |chain: &str, key: &str| format!("server.tls.certificate = '{chain}'\nserver.tls.key = '{key}'");
    let pair = place.refuses(&tls(&chain, &wrong_key), &[]).await;
    assert!(pair.contains("server.tls.certificate and server.tls.key"), "{pair}");
    let swapped = place.refuses(&tls(&key, &chain), &[]).await;
    assert!(swapped.contains("server.tls.certificate") && swapped.contains("key.pem"), "{swapped}");
    let no_key = place.refuses(&tls(&chain, &chain), &[]).await;
    assert!(no_key.contains("server.tls.key"), "{no_key}");
    let missing = place.refuses(&tls(&chain, "/nowhere/key.pem"), &[]).await;
    assert!(missing.contains("server.tls.key") && missing.contains("/nowhere/key.pem"), "{missing}");
    let clients = format!("{}\nserver.tls.client_ca = '{key}'", tls(&chain, &key));
    let clients = place.refuses(&clients, &[]).await;
    assert!(clients.contains("server.tls.client_ca"), "{clients}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prices_and_secrets_that_cannot_be_used_are_refused_before_a_start() {
    let place = Place::new();
    let prices = |path: &str| format!("costs.prices = '{path}'");
    let broken = place.refuses(&prices(&place.file("prices.json", "{\"m\": 3}")), &[]).await;
    assert!(broken.contains("costs.prices") && broken.contains("prices.json"), "{broken}");
    let missing = place.refuses(&prices("/nowhere/prices.json"), &[]).await;
    assert!(missing.contains("costs.prices"), "{missing}");

    let alerts = "alerts.url = 'https://hooks.example.com/x'\nalerts.secret.env = 'HOOK'";
    for env in [&[("HOOK", "whsec_???")][..], &[]] {
        let secret = place.refuses(alerts, env).await;
        assert!(secret.contains("alerts.secret"), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_none_or_cannot_be_written_to_is_refused_before_a_start() {
    let place = Place::new();
    let file = place.file("a-file", "");
    let link = place.0.path().join("a-link");
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    let link = link.display().to_string();
    // Nobody can write to the last one, root included.
    for folder in [file.clone(), format!("{file}/data"), link, "/proc/offpeak".to_owned()] {
        let refused = place.refuses(&format!("store.folder = '{folder}'"), &[]).await;
        assert!(refused.contains("store.folder") && refused.contains(&folder), "{refused}");
    }
    let data = place.0.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("files"), "").unwrap();
    let refused = place.refuses("", &[]).await;
    assert!(refused.contains("store.folder") && refused.contains("data/files"), "{refused}");
}

#[test]
fn all_else_is_checked_where_the_secrets_are_not() {
    let place = Place::new();
    let tenant = "[tenants.search]\nkeys = [{ file = \"/run/secrets/that-are-not-here\" }]\n";
    let text = |plugins: &str| {
        let (cache, data) = (cache(), place.0.path().join("data"));
        format!(
            "plugins.cache = '{}'\nstore.folder = '{}'\n{}\n{tenant}{plugins}",
            cache.display(),
            data.display(),
            LEAST.replace("access.open = true\n", "")
        )
    };
    let error = Config::from_text("offpeak.toml", &text(""), &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("PROVIDER_KEY") && error.contains("that-are-not-here"), "{error}");
    let config = Config::from_text("offpeak.toml", &text(""), &WithoutSecrets).unwrap();
    app::check(&config).unwrap();
    let router = place.file("router.wasm", "this is no component");
    let plugins = format!("[plugins.router]\nfile = '{router}'\n");
    let config = Config::from_text("offpeak.toml", &text(&plugins), &WithoutSecrets).unwrap();
    let error = app::check(&config).unwrap_err().to_string();
    assert!(error.contains("router"), "{error}");
}
