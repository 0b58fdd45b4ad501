//! `offpeak db`: looks after a data folder that no daemon uses just now.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use offpeak_store::{Audit, Compacted, Options, Store, StoreError};
use serde_json::json;

use crate::config::{self, ProcessEnv};

/// Exit codes: damage was found; the command cannot do anything here as things are (sysexits.h); the disk failed (likewise).
const DAMAGED: u8 = 1;
const USAGE: u8 = 64;
const DISK: u8 = 74;

/// Checks or compacts the data folder of a daemon that is stopped.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Exits with 0 if all is well, 1 if something is damaged, 64 if there is no store, or a daemon uses it, \
                        and 74 if the disk fails."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// The data folder. Without it: the one that the configuration names as store.folder.
    #[arg(long, global = true, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// The configuration file that names the folder.
    #[arg(short, long, global = true, value_name = "FILE", conflicts_with = "folder")]
    config: Option<PathBuf>,
    /// Print JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Read everything: all records by their checksums, the index by its own, and each against the other. Mends nothing.
    Check,
    /// Give back the room in the index file that nothing needs any more. Segment files go by themselves, whole.
    Compact,
}

/// What the command has to say.
#[derive(Debug)]
pub struct Done {
    /// For standard output.
    pub text: String,
    /// How the program ends.
    pub exit_code: u8,
}

/// The command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The configuration.
    #[error("{0}")]
    Config(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DbError {
    /// How the program ends.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Store(StoreError::IndexDamaged(_) | StoreError::Index(_) | StoreError::Corrupt { .. }) => {
                DAMAGED
            }
            Self::Store(error) if error.is_temporary() => DISK,
            Self::Config(_) | Self::Store(_) => USAGE,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<Done, DbError> {
    let folder = if let Some(folder) = &args.folder {
        folder.clone()
    } else {
        let folder = config::store_folder(args.config.as_deref(), &ProcessEnv);
        folder.map_err(|errors| DbError::Config(errors.to_string()))?
    };
    let options = Options::new(folder);
    Ok(match args.command {
        Command::Check => {
            let audit = Store::check(&options)?;
            let text = if args.json { audit_json(&audit) } else { audit_text(&audit) };
            Done { text, exit_code: if audit.is_healthy() { 0 } else { DAMAGED } }
        }
        Command::Compact => {
            let Compacted { before, after } = Store::compact(&options)?;
            let text = if args.json {
                format!("{}\n", json!({ "index_bytes_before": before, "index_bytes": after }))
            } else {
                format!("the index had {before} bytes and has {after}\n")
            };
            Done { text, exit_code: 0 }
        }
    })
}

fn audit_json(audit: &Audit) -> String {
    let told = json!({
        "healthy": audit.is_healthy(),
        "schema": audit.schema,
        "lanes": audit.lanes,
        "requests": audit.requests,
        "unfinished": audit.unfinished,
        "answers": audit.answers,
        "open_batches": audit.open_batches,
        "segments": audit.segments,
        "records": audit.records,
        "records_behind_index": audit.behind_index,
        "torn_bytes": audit.torn_bytes,
        "leftover_segments": audit.leftovers,
        "log_bytes": audit.log_bytes,
        "index_bytes": audit.index_bytes,
        "findings": audit.findings,
        "more_findings": audit.more_findings,
    });
    format!("{told:#}\n")
}

fn audit_text(audit: &Audit) -> String {
    let mut text = format!(
        "schema {}: {} lanes, {} requests ({} unfinished), {} answers, {} open batches\n\
         {} records in {} segments, {} bytes of log, {} bytes of index\n",
        audit.schema,
        audit.lanes,
        audit.requests,
        audit.unfinished,
        audit.answers,
        audit.open_batches,
        audit.records,
        audit.segments,
        audit.log_bytes,
        audit.index_bytes
    );
    for (count, what) in [
        (
            audit.behind_index,
            "records are not in the index yet: the next start takes them in, as after a crash",
        ),
        (
            audit.torn_bytes,
            "bytes of an interrupted write: the next start cuts them off; nothing acknowledged is there",
        ),
        (audit.leftovers, "segment files are not needed any more: the next start removes them"),
    ] {
        if count > 0 {
            text.extend([count.to_string().as_str(), " ", what, "\n"]);
        }
    }
    for finding in &audit.findings {
        text.extend(["DAMAGED: ", finding.as_str(), "\n"]);
    }
    if audit.more_findings > 0 {
        text.extend(["and ", audit.more_findings.to_string().as_str(), " findings more\n"]);
    }
    text.push_str(if audit.is_healthy() {
        "all is well\n"
    } else {
        "Keep a copy of the folder, check the disk, and restore what is damaged from a copy: the rest is still served.\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &std::path::Path, command: Command, json: bool) -> Args {
        Args { command, folder: Some(folder.to_owned()), config: None, json }
    }

    #[test]
    fn the_folder_is_found_without_the_secrets_of_the_configuration_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let (place, config) = (folder.path().join("data"), folder.path().join("offpeak.toml"));
        drop(Store::open(Options::new(&place), offpeak_core::words::Timestamp(0)).unwrap());
        let text = |store: &str| {
            format!(
                "{store}\n[backends.b]\nbase_url = \"https://api.openai.com\"\nmodels = [\"*\"]\n\
                 api_key.env = \"SET_NOWHERE\"\n[alerts]\nurl = \"https://a.example\"\nsecret.file = \"/nowhere\""
            )
        };
        let check = |store: &str| {
            std::fs::write(&config, text(store)).unwrap();
            run(&Args { command: Command::Check, folder: None, config: Some(config.clone()), json: false })
        };
        assert_eq!(check(&format!("store.folder = '{}'", place.display())).unwrap().exit_code, 0);
        let misspelt = check("store.foldr = '/x'").unwrap_err();
        assert!(misspelt.to_string().contains("did you mean `folder`?"), "{misspelt}");
        assert_eq!(misspelt.exit_code(), USAGE);
    }

    #[test]
    fn a_folder_is_checked_and_compacted_only_while_nobody_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("data");
        let nothing = run(&args(&place, Command::Check, false)).unwrap_err();
        assert_eq!(nothing.exit_code(), USAGE, "{nothing}");
        let (store, _) = Store::open(Options::new(&place), offpeak_core::words::Timestamp(0)).unwrap();
        for command in [Command::Check, Command::Compact] {
            let busy = run(&args(&place, command, false)).unwrap_err();
            assert!(busy.to_string().contains("another process uses the data folder"), "{busy}");
            assert_eq!(busy.exit_code(), USAGE);
        }
        drop(store);
        let checked = run(&args(&place, Command::Check, true)).unwrap();
        let told: serde_json::Value = serde_json::from_str(&checked.text).unwrap();
        assert_eq!((checked.exit_code, &told["healthy"]), (0, &json!(true)), "{told}");
        let compacted = run(&args(&place, Command::Compact, false)).unwrap();
        assert!(compacted.text.starts_with("the index had "), "{}", compacted.text);
        // A file that is gone is told, by the exit code too.
        std::fs::remove_file(place.join("log/0000000001.log")).unwrap();
        let checked = run(&args(&place, Command::Check, false)).unwrap();
        assert_eq!(checked.exit_code, DAMAGED);
        assert!(checked.text.contains("DAMAGED: the file of segment 1 is gone"), "{}", checked.text);
    }
}
