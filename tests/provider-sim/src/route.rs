//! Method and path to endpoint.

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// The endpoints, as faults and statistics tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/moderations`
    Moderations,
    /// `POST /v1/messages`
    Messages,
    /// `POST /v1/messages/count_tokens`
    CountTokens,
    /// `GET /v1/responses/{id}`
    GetResponse,
    /// `POST /v1/responses/{id}/cancel`
    CancelResponse,
    /// `DELETE /v1/responses/{id}`
    DeleteResponse,
    /// `GET /v1/models` and `GET /v1/models/{id}`
    Models,
    /// `POST /v1/files`
    UploadFile,
    /// `GET /v1/files`
    ListFiles,
    /// `GET /v1/files/{id}`
    GetFile,
    /// `GET /v1/files/{id}/content`
    FileContent,
    /// `DELETE /v1/files/{id}`
    DeleteFile,
    /// `POST /v1/batches`
    CreateBatch,
    /// `GET /v1/batches`
    ListBatches,
    /// `GET /v1/batches/{id}`
    GetBatch,
    /// `POST /v1/batches/{id}/cancel`
    CancelBatch,
    /// `POST /v1/messages/batches`
    CreateMessageBatch,
    /// `GET /v1/messages/batches`
    ListMessageBatches,
    /// `GET /v1/messages/batches/{id}`
    GetMessageBatch,
    /// `POST /v1/messages/batches/{id}/cancel`
    CancelMessageBatch,
    /// `DELETE /v1/messages/batches/{id}`
    DeleteMessageBatch,
    /// `GET /v1/messages/batches/{id}/results`
    MessageBatchResults,
}

impl Endpoint {
    /// All endpoints, in the order of their discriminants.
    pub const ALL: [Self; 26] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Moderations,
        Self::Messages,
        Self::CountTokens,
        Self::GetResponse,
        Self::CancelResponse,
        Self::DeleteResponse,
        Self::Models,
        Self::UploadFile,
        Self::ListFiles,
        Self::GetFile,
        Self::FileContent,
        Self::DeleteFile,
        Self::CreateBatch,
        Self::ListBatches,
        Self::GetBatch,
        Self::CancelBatch,
        Self::CreateMessageBatch,
        Self::ListMessageBatches,
        Self::GetMessageBatch,
        Self::CancelMessageBatch,
        Self::DeleteMessageBatch,
        Self::MessageBatchResults,
    ];

    /// The six that run a model on the same call.
    pub fn is_realtime(self) -> bool {
        (self as usize) <= Self::Messages as usize
    }

    /// Those that take a body of JSON.
    pub(crate) fn takes_json(self) -> bool {
        let others = [Self::CountTokens, Self::CreateBatch, Self::CreateMessageBatch];
        self.is_realtime() || others.contains(&self)
    }

    /// Those under `/v1/files`.
    pub fn is_files(self) -> bool {
        (Self::UploadFile as usize..=Self::DeleteFile as usize).contains(&(self as usize))
    }

    /// Those under `/v1/batches` and `/v1/messages/batches`.
    pub fn is_batches(self) -> bool {
        self as usize >= Self::CreateBatch as usize
    }
}

/// An endpoint with what the path names; `id` is empty where it names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) id: &'a str,
}

/// Finds the endpoint of a call.
pub(crate) fn route<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, ApiError> {
    let unknown = || ApiError::not_found(format!("Invalid URL ({method} {path})"));
    let mut parts = path.strip_prefix("/v1/").ok_or_else(unknown)?.splitn(4, '/');
    let [first, second, third, fourth] = [(); 4].map(|()| parts.next());
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    // The methods that the path knows, with the endpoint of each.
    let known: &[(Method, Endpoint)] = match (first.unwrap_or_default(), second, third, fourth) {
        ("chat", Some("completions"), None, None) => &[(post, Endpoint::ChatCompletions)],
        ("completions", None, None, None) => &[(post, Endpoint::Completions)],
        ("embeddings", None, None, None) => &[(post, Endpoint::Embeddings)],
        ("moderations", None, None, None) => &[(post, Endpoint::Moderations)],
        ("responses", None, None, None) => &[(post, Endpoint::Responses)],
        ("responses", Some(_), None, None) => {
            &[(get, Endpoint::GetResponse), (delete, Endpoint::DeleteResponse)]
        }
        ("responses", Some(_), Some("cancel"), None) => &[(post, Endpoint::CancelResponse)],
        ("models", _, None, None) => &[(get, Endpoint::Models)],
        ("files", None, None, None) => &[(post, Endpoint::UploadFile), (get, Endpoint::ListFiles)],
        ("files", Some(_), None, None) => &[(get, Endpoint::GetFile), (delete, Endpoint::DeleteFile)],
        ("files", Some(_), Some("content"), None) => &[(get, Endpoint::FileContent)],
        ("batches", None, None, None) => &[(post, Endpoint::CreateBatch), (get, Endpoint::ListBatches)],
        ("batches", Some(_), None, None) => &[(get, Endpoint::GetBatch)],
        ("batches", Some(_), Some("cancel"), None) => &[(post, Endpoint::CancelBatch)],
        ("messages", None, None, None) => &[(post, Endpoint::Messages)],
        ("messages", Some("count_tokens"), None, None) => &[(post, Endpoint::CountTokens)],
        ("messages", Some("batches"), None, None) => {
            &[(post, Endpoint::CreateMessageBatch), (get, Endpoint::ListMessageBatches)]
        }
        ("messages", Some("batches"), Some(_), None) => {
            &[(get, Endpoint::GetMessageBatch), (delete, Endpoint::DeleteMessageBatch)]
        }
        ("messages", Some("batches"), Some(_), Some("cancel")) => &[(post, Endpoint::CancelMessageBatch)],
        ("messages", Some("batches"), Some(_), Some("results")) => &[(get, Endpoint::MessageBatchResults)],
        _ => return Err(unknown()),
    };
    let found = known.iter().find(|(name, _)| name == method).map(|(_, endpoint)| *endpoint);
    let endpoint = found.ok_or_else(|| {
        ApiError::invalid(format!("Not allowed to {method} on {path}."))
            .status(StatusCode::METHOD_NOT_ALLOWED)
            .code("method_not_supported")
    })?;
    let id = match first {
        Some("chat") => None,
        Some("messages") => third,
        _ => second,
    };
    let id = id.unwrap_or_default();
    Ok(Route { endpoint, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_endpoints() {
        let found = |method: Method, path| route(&method, path).map(|r| (r.endpoint, r.id.to_owned()));
        let expect = |endpoint, id: &str| Ok((endpoint, id.to_owned()));
        assert_eq!(found(Method::POST, "/v1/chat/completions"), expect(Endpoint::ChatCompletions, ""));
        assert_eq!(
            found(Method::POST, "/v1/batches/batch_1/cancel"),
            expect(Endpoint::CancelBatch, "batch_1")
        );
        assert_eq!(found(Method::GET, "/v1/files/file-1/content"), expect(Endpoint::FileContent, "file-1"));
        assert_eq!(found(Method::GET, "/v1/chat/completions").unwrap_err().status, 405);
        assert_eq!(found(Method::DELETE, "/v1/batches/b").unwrap_err().status, 405);
        let batch = "/v1/messages/batches/msgbatch_1";
        assert_eq!(found(Method::DELETE, batch), expect(Endpoint::DeleteMessageBatch, "msgbatch_1"));
        let results = format!("{batch}/results");
        assert_eq!(found(Method::GET, &results), expect(Endpoint::MessageBatchResults, "msgbatch_1"));
        assert_eq!(found(Method::POST, "/v1/messages"), expect(Endpoint::Messages, ""));
        assert_eq!(found(Method::GET, "/v1/messages/batches/b/results/x").unwrap_err().status, 404);
        assert_eq!(found(Method::GET, "/v2/files").unwrap_err().status, 404);
        assert_eq!(found(Method::GET, "/v1/files/a/b/c").unwrap_err().status, 404);
    }

    #[test]
    fn discriminants_are_indices() {
        assert!(Endpoint::ALL.iter().enumerate().all(|(n, e)| n == *e as usize));
        assert_eq!(Endpoint::ALL.iter().filter(|e| e.is_realtime()).count(), 6);
        assert_eq!(Endpoint::ALL.iter().filter(|e| e.is_files()).count(), 5);
        assert_eq!(Endpoint::ALL.iter().filter(|e| e.is_batches()).count(), 10);
    }
}
