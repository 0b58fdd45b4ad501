//! `/v1/models` in Anthropic's form.

use serde::Serialize;

use crate::anthropic::Call;
use crate::anthropic::messages::find;
use crate::clock::rfc3339;
use crate::error::ApiError;
use crate::pagination::cursor_page;
use crate::provider::Inner;
use crate::reply::SimResponse;

#[derive(Serialize)]
struct ModelView<'a> {
    r#type: &'static str,
    id: &'a str,
    display_name: &'a str,
    created_at: String,
    lifecycle: &'static str,
    max_input_tokens: u64,
    max_tokens: u64,
}

/// `GET /v1/models` and `GET /v1/models/{id}`
pub(crate) fn list(inner: &Inner, call: &Call<'_>, id: &str) -> Result<SimResponse, ApiError> {
    let view = |id| ModelView {
        r#type: "model",
        id,
        display_name: id,
        created_at: rfc3339(inner.clock.epoch()),
        lifecycle: "active",
        max_input_tokens: 1_000_000,
        max_tokens: 128_000,
    };
    if !id.is_empty() {
        find(inner, id)?;
        return Ok(SimResponse::of(&view(id)));
    }
    let models = inner.catalog.models().iter().filter(|model| model.is_anthropics());
    let rows: Vec<_> = models.map(|model| (model.id.as_str(), model.id.as_str())).collect();
    Ok(SimResponse::of(&cursor_page(&rows, call.query)?.map(view)))
}
