//! Compiled components on disk: found again, and never trusted further than they may be.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use offpeak_host::{Engine, EngineOptions, HostError, Limits, RouterPlugin, Source};

use super::{NOW_MS, candidates, envelope, guests, unhurried};

fn engine(folder: &Path) -> Result<Engine, HostError> {
    Engine::new(&EngineOptions {
        cache_dir: Some(folder.to_owned()),
        pool_instances: 4,
        ..EngineOptions::default()
    })
}

/// Loads and calls the guest in a new engine; how many compilations that took.
fn compilations(folder: &Path) -> u64 {
    let engine = engine(folder).unwrap();
    let source = Source::Bytes(guests::router::COMPONENT);
    let limits = unhurried(Limits::router());
    let router = RouterPlugin::load(&engine, "mine", source, "{}".into(), limits, NOW_MS).unwrap();
    router.route(&envelope("gpt"), &candidates(), NOW_MS).unwrap();
    engine.compilations()
}

fn kept(folder: &Path, extension: &str) -> PathBuf {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_component_is_compiled_once() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("a/b");
    assert_eq!(compilations(&folder), 1);
    assert_eq!(compilations(&folder), 0);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(kept(&folder, "cwasm")).unwrap().permissions().mode() & 0o077, 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "the code and its sum, and nothing left over");
}

#[test]
fn without_a_folder_nothing_is_kept() {
    let engine = Engine::new(&EngineOptions { pool_instances: 4, ..EngineOptions::default() }).unwrap();
    for expected in 1..=2 {
        engine.load("mine", Source::Bytes(guests::router::COMPONENT)).unwrap();
        assert_eq!(engine.compilations(), expected);
    }
}

#[test]
fn damaged_code_is_compiled_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("cache");
    assert_eq!(compilations(&folder), 1);
    let code = kept(&folder, "cwasm");
    let good = fs::read(&code).unwrap();

    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for damaged in [&flipped[..], &good[..good.len() / 2], b"", b"something else"] {
        fs::write(&code, damaged).unwrap();
        assert_eq!(compilations(&folder), 1, "{} bytes", damaged.len());
        assert_eq!(compilations(&folder), 0, "and kept again");
    }

    fs::remove_file(kept(&folder, "sum")).unwrap();
    assert_eq!(compilations(&folder), 1, "code without its sum");
    assert_eq!(compilations(&folder), 0);
}

#[test]
fn code_of_other_settings_is_not_used_under_our_name() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("cache");
    assert_eq!(compilations(&folder), 1);
    // Well-formed for the checksum, and foreign to wasmtime.
    let foreign = b"\x7fELF but not ours";
    fs::write(kept(&folder, "cwasm"), foreign).unwrap();
    fs::write(kept(&folder, "sum"), format!("{} {:08x}\n", foreign.len(), crc32fast::hash(foreign))).unwrap();
    assert_eq!(compilations(&folder), 1);
    assert_eq!(compilations(&folder), 0);
}

#[test]
fn code_that_others_could_have_written_is_not_run() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("cache");
    assert_eq!(compilations(&folder), 1);
    set_mode(&kept(&folder, "cwasm"), 0o620);
    assert_eq!(compilations(&folder), 1);
    assert_eq!(compilations(&folder), 0);

    let code = kept(&folder, "cwasm");
    let elsewhere = place.path().join("elsewhere");
    fs::rename(&code, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &code).unwrap();
    assert_eq!(compilations(&folder), 1, "a link leads out of the folder that is ours alone");
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("cache");
    fs::create_dir(&folder).unwrap();
    set_mode(&folder, 0o777);
    let error = engine(&folder).unwrap_err();
    assert!(matches!(error, HostError::CacheUnsafe { .. }), "{error}");
    assert!(error.to_string().contains("others may write to it (mode 777)"), "{error}");

    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let error = engine(&file).unwrap_err();
    assert!(matches!(error, HostError::CacheFolder { .. }), "{error}");
}
