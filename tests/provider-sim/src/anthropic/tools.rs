//! Tools: which are offered, which has to be called, and whether calls and results belong together. Images are checked here
//! as well, since they too are blocks that hold more than text.

use serde::Deserialize;

use crate::anthropic::error::{invalid, required};
use crate::error::ApiError;
use crate::wire::{Message, Part, Source, Text};

/// A tool that the model may call.
#[derive(Debug, Deserialize)]
pub(super) struct Tool<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    input_schema: Option<Schema<'a>>,
}

/// The part of a schema that is asked for.
#[derive(Debug, Deserialize)]
struct Schema<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
}

/// Whether the model has to call one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolChoice<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(rename = "disable_parallel_tool_use")]
    _one_by_one: Option<bool>,
}

/// Checks the tools, and finds the one that has to be called: the chosen one, or the first where any will do.
pub(super) fn called<'a>(
    tools: Vec<Tool<'a>>,
    choice: Option<ToolChoice<'a>>,
) -> Result<Option<Text<'a>>, ApiError> {
    let mut names = Vec::with_capacity(tools.len());
    for (n, tool) in tools.into_iter().enumerate() {
        let name = tool.name.ok_or_else(|| required(format_args!("tools.{n}.name")))?;
        // Tools of the provider's own have a type, and no schema.
        if tool.kind.is_none_or(|kind| &*kind == "custom") {
            let schema = tool.input_schema.ok_or_else(|| required(format_args!("tools.{n}.input_schema")))?;
            if schema.kind.as_deref() != Some("object") {
                return Err(invalid(format_args!("tools.{n}.input_schema.type"), "Input should be 'object'"));
            }
        }
        names.push(name);
    }
    let Some(choice) = choice else { return Ok(None) };
    let kind = choice.kind.as_deref().ok_or_else(|| required("tool_choice.type"))?;
    if names.is_empty() && kind != "none" {
        return Err(invalid("tool_choice", "may only be specified while providing tools"));
    }
    match kind {
        "auto" | "none" => Ok(None),
        "any" => Ok(names.into_iter().next()),
        "tool" => {
            let wanted = choice.name.ok_or_else(|| required("tool_choice.tool.name"))?;
            if !names.contains(&wanted) {
                return Err(invalid(
                    "tool_choice",
                    &format!("Tool '{}' not found in provided tools", &*wanted),
                ));
            }
            Ok(Some(wanted))
        }
        _ => Err(invalid("tool_choice.type", "Input should be 'auto', 'any', 'tool' or 'none'")),
    }
}

/// Refuses an image, a call or a result that lacks what it is made of, or that stands with the wrong side.
pub(super) fn check_block(part: &Part<'_>, kind: &str, role: &str, place: &str) -> Result<(), ApiError> {
    let needed = |is_there: bool, name: &str| {
        if is_there { Ok(()) } else { Err(required(format_args!("{place}.{kind}.{name}"))) }
    };
    match (kind, role) {
        ("image", "user") => {
            let source =
                part.source.as_ref().ok_or_else(|| required(format_args!("{place}.image.source")))?;
            check_source(source, &format!("{place}.image.source"))
        }
        ("tool_use", "assistant") => {
            needed(part.id.is_some(), "id")?;
            needed(part.name.is_some(), "name")?;
            needed(part.input.is_some(), "input")
        }
        ("tool_result", "user") => needed(part.tool_use_id.is_some(), "tool_use_id"),
        ("image" | "tool_use" | "tool_result", _) => {
            Err(invalid(place, &format!("`{kind}` blocks are not permitted in {role} messages")))
        }
        _ => Ok(()),
    }
}

fn check_source(source: &Source<'_>, place: &str) -> Result<(), ApiError> {
    const IMAGES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];
    match source.kind.as_deref() {
        Some("base64") => {
            if !source.media_type.as_deref().is_some_and(|kind| IMAGES.contains(&kind)) {
                let kinds = "Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'";
                return Err(invalid(format_args!("{place}.base64.media_type"), kinds));
            }
            if source.data.as_deref().is_none_or(str::is_empty) {
                return Err(invalid(format_args!("{place}.base64"), "image cannot be empty"));
            }
            Ok(())
        }
        Some("url") => match source.url.as_deref() {
            Some(url) if url.starts_with("http") => Ok(()),
            _ => Err(invalid(format_args!("{place}.url.url"), "Only HTTPS URLs are supported.")),
        },
        Some("file") => Ok(()),
        _ => Err(invalid(format_args!("{place}.type"), "Input should be 'base64', 'url' or 'file'")),
    }
}

/// Refuses calls without results right behind them, and results without calls right before them.
pub(super) fn check_turns(messages: &[Message<'_>]) -> Result<(), ApiError> {
    let of = |message: Option<&Message<'_>>, kind: &str| -> Vec<String> {
        let parts = message.map(|message| message.content.parts()).unwrap_or_default();
        let parts = parts.iter().filter(|part| part.kind.as_deref() == Some(kind));
        parts.filter_map(|part| Some(part.id.as_ref().or(part.tool_use_id.as_ref())?.to_string())).collect()
    };
    for (n, message) in messages.iter().enumerate() {
        let before = n.checked_sub(1).and_then(|n| messages.get(n));
        let (calls, results) = (of(before, "tool_use"), of(Some(message), "tool_result"));
        if let Some(id) = results.iter().find(|id| !calls.contains(id)) {
            let why = format!(
                "unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each `tool_result` block must have a \
                 corresponding `tool_use` block in the previous message."
            );
            return Err(invalid(format_args!("messages.{n}.content"), &why));
        }
        let next = of(messages.get(n + 1), "tool_result");
        if let Some(id) = of(Some(message), "tool_use").iter().find(|id| !next.contains(id)) {
            let why = format!(
                "`tool_use` ids were found without `tool_result` blocks immediately after: {id}. Each `tool_use` block \
                 must have a corresponding `tool_result` block in the next message."
            );
            return Err(invalid(format_args!("messages.{n}"), &why));
        }
    }
    Ok(())
}
