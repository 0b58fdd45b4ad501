//! The way to the admin plane.

use clap::Args;
use http::StatusCode;
use reqwest::{Client, Method, Url};
use serde_json::Value;

use crate::upstream::install_crypto;

/// How to reach the daemon's admin plane.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The address of the daemon's admin plane.
    #[arg(long, alias = "admin", env = "OFFPEAK_ADMIN_URL", default_value = "http://127.0.0.1:8401")]
    pub admin_url: String,
}

/// An operator's command failed.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// No URL.
    #[error(
        "'{0}' is not an address of an admin plane: give --admin-url something like http://127.0.0.1:8401"
    )]
    BadUrl(String),
    /// The HTTP client.
    #[error("the HTTP client could not be set up: {0}")]
    Setup(reqwest::Error),
    /// Nobody answers.
    #[error(
        "the admin plane cannot be reached at {url}: {message}. Is `offpeak serve` running? --admin-url names another address"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        message: String,
    },
    /// The daemon says no.
    #[error("{0}")]
    Refused(String),
}

impl OperateError {
    /// The exit code: 64 for what must be mended in the command, 69 if nobody answers (sysexits.h).
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::BadUrl(_) | Self::Refused(_) => 64,
            Self::Setup(_) | Self::Unreachable { .. } => 69,
        }
    }
}

/// Calls the admin plane and returns the body of a good answer.
pub async fn call(
    args: &AdminArgs,
    method: Method,
    path: &str,
    query: &[(&str, &str)],
    body: Option<&Value>,
) -> Result<String, OperateError> {
    install_crypto();
    let bad = || OperateError::BadUrl(args.admin_url.clone());
    let base = Url::parse(&args.admin_url).map_err(|_| bad())?;
    let mut url = base.join(path).map_err(|_| bad())?;
    url.query_pairs_mut().extend_pairs(query);
    if query.is_empty() {
        url.set_query(None);
    }
    let client = Client::builder().no_proxy().build().map_err(OperateError::Setup)?;
    let mut request = client.request(method, url);
    if let Some(body) = body {
        request = request.json(body);
    }
    let unreachable = |error: reqwest::Error| OperateError::Unreachable {
        url: args.admin_url.clone(),
        message: error.without_url().to_string(),
    };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let text = response.text().await.map_err(unreachable)?;
    if status.is_success() { Ok(text) } else { Err(refused(status, &text)) }
}

fn refused(status: StatusCode, text: &str) -> OperateError {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let message = body["error"]["message"].as_str();
    OperateError::Refused(message.map_or_else(|| format!("the daemon answers {status}"), str::to_owned))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        admin: AdminArgs,
    }

    #[test]
    fn the_admin_plane_has_one_name_and_a_short_one() {
        for name in ["--admin-url", "--admin"] {
            let command = Command::try_parse_from(["offpeak", name, "http://127.0.0.1:9"]).map_err(drop);
            assert_eq!(
                command.map(|command| command.admin.admin_url),
                Ok("http://127.0.0.1:9".to_owned()),
                "{name}"
            );
        }
    }
}
