//! `offpeak keys`: the keys of tenants.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{self, AdminArgs, OperateError};
use super::table;
use crate::tenant::keys::SlaScope;

/// Makes, lists, rotates and revokes the API keys of tenants.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Print the daemon's answer as JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key for a tenant of the configuration. It is shown once and never again.
    Create {
        /// The tenant.
        tenant: String,
        /// What people call it.
        #[arg(long, default_value = "")]
        label: String,
        /// How long it is accepted, such as 90d.
        #[arg(long, value_parser = lifetime)]
        expires_in: Option<Duration>,
        /// Models that it may be used for; * stands for anything. May be given several times.
        #[arg(long = "model")]
        models: Vec<String>,
        /// Backends that it may be used at.
        #[arg(long = "backend")]
        backends: Vec<String>,
        /// Endpoints that it may be used at, such as /v1/embeddings.
        #[arg(long = "endpoint")]
        endpoints: Vec<String>,
        /// How its requests may be run.
        #[arg(long = "sla", value_enum)]
        sla: Vec<SlaScope>,
        /// Requests a minute, beside the tenant's own limits.
        #[arg(long)]
        requests_per_minute: Option<u32>,
        /// Deferred requests that leave a minute, within the tenant's own limits. What is beyond that waits.
        #[arg(long)]
        deferred_requests_per_minute: Option<u32>,
        /// Deferred requests that may wait, within what the tenant may have waiting. What is beyond that is refused.
        #[arg(long)]
        max_queued: Option<u64>,
    },
    /// List all keys, without the keys themselves.
    List,
    /// Make a key in the place of another, which is accepted for a while beside it.
    Rotate {
        /// The old key's id.
        id: String,
        /// How long the old key is still accepted.
        #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
        overlap: Duration,
    },
    /// End a key at once.
    Revoke {
        /// The key's id.
        id: String,
    },
}

const PATH: &str = "/admin/v1/keys";

/// How long a key is accepted: one that is over at once would be of no use.
fn lifetime(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time < Duration::from_secs(1) => {
            Err("a key that expires at once is of no use".to_owned())
        }
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}: write a duration such as 90d or 12h")),
    }
}

/// Runs the command; returns what goes to standard output.
pub async fn run(args: &Args) -> Result<String, OperateError> {
    let (method, path, body) = request(&args.command);
    let text = client::call(&args.admin, method, &path, &[], body.as_ref()).await?;
    if args.json {
        return Ok(text + "\n");
    }
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    Ok(match &args.command {
        Command::List => list(&answer),
        Command::Create { .. } | Command::Rotate { .. } => made(&answer),
        Command::Revoke { id } => format!("{id} is revoked\n"),
    })
}

fn request(command: &Command) -> (Method, String, Option<Value>) {
    match command {
        Command::List => (Method::GET, PATH.to_owned(), None),
        Command::Revoke { id } => (Method::DELETE, format!("{PATH}/{id}"), None),
        Command::Rotate { id, overlap } => {
            (Method::POST, format!("{PATH}/{id}/rotate"), Some(json!({ "overlap_s": overlap.as_secs() })))
        }
        Command::Create {
            tenant,
            label,
            expires_in,
            models,
            backends,
            endpoints,
            sla,
            requests_per_minute,
            deferred_requests_per_minute,
            max_queued,
        } => {
            let scopes =
                json!({ "models": models, "backends": backends, "endpoints": endpoints, "sla": sla });
            let body = json!({
                "tenant": tenant,
                "label": label,
                "expires_in_s": expires_in.map(|time| time.as_secs()),
                "scopes": scopes,
                "limits": { "requests_per_minute": requests_per_minute },
                "deferred": { "requests_per_minute": deferred_requests_per_minute },
                "queue": { "max_queued": max_queued },
            });
            (Method::POST, PATH.to_owned(), Some(body))
        }
    }
}

fn made(answer: &Value) -> String {
    let text = |name: &str| answer[name].as_str().unwrap_or_default();
    format!(
        "id      {}\ntenant  {}\nkey     {}\n\nKeep the key now: it is not shown again.\n",
        text("id"),
        text("tenant"),
        text("key")
    )
}

fn list(answer: &Value) -> String {
    let title = ["id", "tenant", "label", "accepted", "expires"].map(str::to_owned).to_vec();
    let row = |key: &Value| {
        let text = |name: &str| key[name].as_str().unwrap_or_default().to_owned();
        let state = match (key["accepted"].as_bool(), key["revoked_at_ms"].is_null()) {
            (Some(true), _) => "yes",
            (_, false) => "revoked",
            _ => "expired",
        };
        let expires = key["expires_at_ms"].as_u64().map_or_else(String::new, |ms| {
            let at = std::time::UNIX_EPOCH + Duration::from_millis(ms);
            humantime::format_rfc3339_seconds(at).to_string()
        });
        vec![text("id"), text("tenant"), text("label"), state.to_owned(), expires]
    };
    let rows = answer["data"].as_array().into_iter().flatten().map(row);
    let rows: Vec<_> = std::iter::once(title).chain(rows).collect();
    table::aligned(&rows, 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_listed_with_their_state() {
        let answer = json!({ "data": [
            { "id": "key-1", "tenant": "search", "label": "ci", "accepted": true, "expires_at_ms": 0, "revoked_at_ms": null },
            { "id": "key-2", "tenant": "mail", "label": "", "accepted": false, "expires_at_ms": null, "revoked_at_ms": 5 },
        ]});
        let listed = list(&answer);
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines[1], "key-1  search  ci     yes       1970-01-01T00:00:00Z");
        assert_eq!(lines[2], "key-2  mail           revoked");
    }

    #[test]
    fn a_key_lives_for_a_time() {
        assert_eq!(lifetime("90d"), Ok(Duration::from_hours(90 * 24)));
        assert!(lifetime("0s").unwrap_err().contains("at once"));
        assert!(lifetime("tomorrow").unwrap_err().contains("such as 90d"));
    }
}
