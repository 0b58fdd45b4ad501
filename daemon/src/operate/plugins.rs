//! `offpeak plugin list` and `reload`: the plugins of a running daemon.

use clap::Args as ClapArgs;
use reqwest::Method;
use serde_json::Value;

use super::client::{self, AdminArgs, OperateError};
use super::table;

const PATH: &str = "/admin/v1/plugins";

/// For whoever changed something and does not see it.
const NOTHING_CHANGED: &str = "The files are as they were: `offpeak plugin build` makes a component anew. Settings, paths and pins \
                               stand in the configuration, which the daemon reads again on SIGHUP.\n";

/// Of a plugin that failed several times in a row.
const RESTS: &str = "rests after failures, which the log tells";

/// Lists or reloads the plugins of a daemon.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Print the daemon's answer as JSON, for scripts.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// The plugins at work; returns what goes to standard output.
pub async fn list(args: &Args) -> Result<String, OperateError> {
    let text = client::call(&args.admin, Method::GET, PATH, &[], None).await?;
    Ok(if args.json { text + "\n" } else { listed(&text) })
}

/// Has the daemon read the files of its plugins again; returns what goes to standard output.
pub async fn reload(args: &Args) -> Result<String, OperateError> {
    let path = format!("{PATH}/reload");
    let text = client::call(&args.admin, Method::POST, &path, &[], None).await?;
    Ok(if args.json { text + "\n" } else { reloaded(&text) })
}

fn listed(text: &str) -> String {
    let headings =
        ["plugin", "role", "used by", "source", "sha256", "calls", "errors", "p50 us", "p99 us", ""];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(rows_of(text).iter().map(|row| {
        let mut cells = named(row);
        for number in [&row["calls"], &row["errors"], &row["call_us"]["p50"], &row["call_us"]["p99"]] {
            cells.push(number.to_string());
        }
        cells.push(if row["out_of_use"] == true { RESTS } else { "" }.to_owned());
        cells
    }));
    table::aligned(&rows, 5)
}

fn reloaded(text: &str) -> String {
    let mut rows = vec![["plugin", "role", "used by", "source", "sha256", ""].map(str::to_owned).to_vec()];
    rows.extend(rows_of(text).iter().map(|row| {
        let mut cells = named(row);
        cells.push(if row["changed"] == true { "changed" } else { "as before" }.to_owned());
        cells
    }));
    let has_changed = rows_of(text).iter().any(|row| row["changed"] == true);
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    let hint = match (answer["configuration_refused"].as_str(), has_changed) {
        (Some(why), _) => {
            format!(
                "The configuration that the daemon read again last was not taken in, so that the one before holds: {why}\n"
            )
        }
        (None, false) => NOTHING_CHANGED.to_owned(),
        (None, true) => String::new(),
    };
    table::aligned(&rows, 6) + &hint
}

fn rows_of(text: &str) -> Vec<Value> {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    answer["data"].as_array().cloned().unwrap_or_default()
}

/// Which plugin a row is about; of its SHA-256 as much as tells it from others.
fn named(row: &Value) -> Vec<String> {
    let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
    let sha256: String = text("sha256").chars().take(12).collect();
    vec![text("name"), text("role"), text("used_by"), text("source"), sha256]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_have_a_row_a_plugin() {
        let mut row = json!({
            "name": "router", "role": "router", "used_by": null, "source": "/r.wasm", "sha256": "ab".repeat(32),
            "calls": 7, "errors": 1, "call_us": { "p50": 1.2, "p99": 3.0 }, "changed": true,
        });
        let text = json!({ "data": [row] }).to_string();
        assert_eq!(
            listed(&text),
            "plugin  role    used by  source   sha256        calls  errors  p50 us  p99 us\n\
             router  router  -        /r.wasm  abababababab      7       1     1.2     3.0\n"
        );
        row["changed"] = false.into();
        let text = json!({ "data": [row] }).to_string();
        let told = reloaded(&text);
        assert!(
            told.contains("router  router  -        /r.wasm  abababababab  as before\nThe files are as"),
            "{told}"
        );
        let text = json!({ "data": [row], "configuration_refused": "x.toml:3:1: no" }).to_string();
        assert!(reloaded(&text).ends_with("the one before holds: x.toml:3:1: no\n"));
    }
}
