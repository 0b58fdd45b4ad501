use std::path::Path;

use super::*;

/// The sources of the bundled plugins.
const PLUGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins");

fn tried(name: &str, component: &[u8], cases: &[CaseFile]) -> Report {
    let verdicts = Bench::new(name, component, None, None).unwrap().try_all(cases).unwrap();
    Report::new(name.to_owned(), verdicts)
}

fn cases(text: &str) -> Vec<CaseFile> {
    vec![file::parse(text, false, PathBuf::from("cases.toml")).unwrap()]
}

#[test]
fn the_bundled_plugins_pass_their_cases() {
    let provider = |name| offpeak_bundled::PROVIDERS.into_iter().find(|(known, _)| *known == name).unwrap().1;
    for (folder, component) in [
        ("sla-router", offpeak_bundled::SLA_ROUTER),
        ("standard-retry", offpeak_bundled::STANDARD_RETRY),
        ("standard-cost", offpeak_bundled::STANDARD_COST),
        ("anthropic", provider("anthropic")),
        ("openai", provider("openai")),
        ("vllm", provider("vllm")),
    ] {
        let report = tried(
            folder,
            component,
            &file::read_all(&Path::new(PLUGINS).join(folder).join("cases")).unwrap(),
        );
        assert!(report.failed == 0 && report.passed > 1, "{}", report.text());
    }
}

#[test]
fn what_differs_is_shown_by_its_place() {
    let report = tried(
        "sla-router",
        offpeak_bundled::SLA_ROUTER,
        &cases(
            r#"
            [[case]]
            name = "the wrong offer"
            gives = { choose = { offer = "flex" } }

            [[case]]
            name = "the right one"
            gives = { choose = { offer = "batch" } }
            "#,
        ),
    );
    assert_eq!((report.passed, report.failed), (1, 1));
    let text = report.text();
    for part in [
        "FAILED  cases.toml: the wrong offer",
        "choose.offer\n          - \"flex\"\n          + \"batch\"",
        "passed  cases.toml: the right one",
        "1 of 2 cases of sla-router passed",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let json = json!(report);
    assert_eq!(json["cases"][0]["wrong"][0]["differences"][0]["at"], "choose.offer");
}

#[test]
fn a_transcript_stops_where_it_goes_wrong_and_names_the_step() {
    let (_, openai) = offpeak_bundled::PROVIDERS.into_iter().find(|(name, _)| *name == "openai").unwrap();
    let report = tried(
        "openai",
        openai,
        &cases(
            r#"
            [[case]]
            name = "an upload and a wrong path"
            steps = [
                { event = "start", gives = { upload = {} } },
                { event = { answered = { status = 200, body = { id = "file-1" } } }, gives = { call = { path = "/v1/batch" } } },
                { event = "waited", gives = "is not looked at" },
            ]
            "#,
        ),
    );
    let text = report.text();
    assert!(
        text.contains("step 2, call.path\n          - \"/v1/batch\"\n          + \"/v1/batches\""),
        "{text}"
    );
    assert!(!text.contains("step 3"), "{text}");
}

#[test]
fn a_case_that_cannot_be_run_says_why() {
    let problem = |text: &str| {
        let report = tried("sla-router", offpeak_bundled::SLA_ROUTER, &cases(text));
        assert_eq!(report.failed, 1);
        report.text()
    };
    let misspelt = problem("[[case]]\nname = 'a'\nrequest = { tennant = 'x' }\ngives = 'pass'");
    assert!(misspelt.contains("tennant"), "{misspelt}");
    let open = problem("[[case]]\nname = 'a'\nrequest = { sla = 'tomorrow' }\ngives = 'pass'");
    assert!(open.contains("an sla is"), "{open}");
    let open = problem("[[case]]\nname = 'a'");
    assert!(open.contains("add `gives`"), "{open}");
    let other = file::parse("[[cases]]\nname = 'a'", false, PathBuf::new()).unwrap_err();
    assert!(other.contains("cases"), "{other}");
    assert_eq!(
        file::parse(r#"{"case": [{"name": "a", "now": "2026-11-25T12:00:00Z"}]}"#, true, PathBuf::new())
            .unwrap()
            .cases
            .len(),
        1
    );
}

#[test]
fn a_component_of_two_worlds_wants_to_know_which() {
    let (_, vllm) = offpeak_bundled::PROVIDERS.into_iter().find(|(name, _)| *name == "vllm").unwrap();
    let bench = Bench::new("vllm", vllm, None, None).unwrap();
    let error = bench.try_all(&cases("[[case]]\nname = 'a'\ngives = 'x'")).unwrap_err().to_string();
    assert!(error.contains("worlds") && error.contains("provider, engine"), "{error}");
}

#[test]
fn what_was_not_built_or_has_no_cases_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let args = |plugin: &Path| Args {
        plugin: plugin.to_owned(),
        cases: None,
        time_limit: None,
        only: None,
        json: false,
    };
    let error = found(&args(folder.path())).unwrap_err();
    assert!(matches!(error, TestError::NotBuilt(_)), "{error}");
    fs::create_dir(folder.path().join("build")).unwrap();
    fs::write(folder.path().join("build/module.wasm"), b"").unwrap();
    assert!(matches!(found(&args(folder.path())).unwrap_err(), TestError::NotBuilt(_)));
    fs::write(folder.path().join("build/mine.wasm"), b"").unwrap();
    assert!(matches!(found(&args(folder.path())).unwrap_err(), TestError::NoCases(_)));
    fs::create_dir(folder.path().join("cases")).unwrap();
    fs::write(folder.path().join("cases/a.toml"), "[[case]]\nname = 'a'").unwrap();
    let (component, cases) = found(&args(folder.path())).unwrap();
    assert!(component.ends_with("build/mine.wasm") && cases.len() == 1);
    assert_eq!(newer_source(folder.path(), &component), None);
    let source = folder.path().join("mine.py");
    let file = fs::File::create(&source).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(9)).unwrap();
    assert_eq!(newer_source(folder.path(), &component), Some(source));
    let (_, cases) = found(&args(&component)).unwrap();
    assert_eq!(cases.len(), 1, "beside the folder that the component lies in");
    assert_eq!(run(&args(&folder.path().join("nowhere"))), USAGE);
}
