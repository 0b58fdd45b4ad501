//! Asks a running daemon over its admin plane: what `offpeak explain` does.

use serde::Deserialize;

use crate::admin::explain::Explanation;
use crate::upstream;

/// There is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers.
    #[error(
        "no offpeak answers at {url}: {source}. Is it running? Name its admin address with --admin-url, as server.admin has it"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It is something else that answers.
    #[error(
        "what answers at {url} is not offpeak's admin plane: name that with --admin-url, as server.admin has it"
    )]
    NotOffpeak {
        /// Where.
        url: String,
    },
}

#[derive(Deserialize)]
struct Refusal {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

/// Asks why a request or a lane is where it is. `admin` is where the admin plane is, such as `http://127.0.0.1:8401`.
pub async fn explain(admin: &str, about: &str) -> Result<Explanation, AskError> {
    upstream::install_crypto();
    let admin = admin.trim_end_matches('/');
    let admin = if admin.contains("://") { admin.to_owned() } else { format!("http://{admin}") };
    let unreachable = |source| AskError::Unreachable { url: admin.clone(), source };
    let client = reqwest::Client::builder().no_proxy().build().map_err(unreachable)?;
    let mut url = reqwest::Url::parse(&admin).map_err(|_| AskError::NotOffpeak { url: admin.clone() })?;
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["admin", "v1", "explain", about]);
    }
    let response = client.get(url).send().await.map_err(unreachable)?;
    let is_fine = response.status().is_success();
    let body = response.bytes().await.map_err(unreachable)?;
    let strange = |_| AskError::NotOffpeak { url: admin.clone() };
    if is_fine {
        return serde_json::from_slice(&body).map_err(strange);
    }
    let Refusal { error } = serde_json::from_slice(&body).map_err(strange)?;
    Err(AskError::Refused(error.message))
}
