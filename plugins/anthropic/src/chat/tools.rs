//! Tools, and which of them the model may call.

use serde_json::value::RawValue;

use super::json::{Object, Out, Place, Refusal, list, text};

/// Writes `tools` and `tool_choice`.
pub(super) fn write(request: &mut Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let place = request.place();
    let mut any = false;
    if let Some(tools) = request.take("tools") {
        let place = place.member("tools");
        let tools = list(tools, &place)?;
        any = !tools.is_empty();
        out.member("tools");
        out.raw("[");
        for (index, tool) in tools.into_iter().enumerate() {
            write_tool(Object::of(tool, place.entry(index))?, out)?;
        }
        out.raw("]");
    }
    let choice = request.take("tool_choice");
    let parallel = request.flag("parallel_tool_calls")?;
    if let Some(choice) = choice {
        return write_choice(choice, &place.member("tool_choice"), parallel, out);
    }
    // Without tools nothing can be called, one after the other or not.
    if let Some(parallel) = parallel.filter(|_| any) {
        out.member("tool_choice");
        write_named_choice("auto", Some(parallel), out);
    }
    Ok(())
}

fn write_tool(mut tool: Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let place = tool.place();
    let kind = tool.require_text("type")?;
    if kind != "function" {
        let why = "describe it as a function.";
        return Err(Refusal::unsupported_value(&place.member("type"), &kind, why));
    }
    let mut function = Object::of(tool.require("function")?, place.member("function"))?;
    out.separate();
    out.raw("{\"name\":");
    out.text(&function.require_text("name")?);
    if let Some(description) = function.text("description")? {
        out.member("description");
        out.text(&description);
    }
    out.member("input_schema");
    match function.take("parameters") {
        Some(schema) => write_schema(schema, &function.place().member("parameters"), out)?,
        None => out.raw(NO_PARAMETERS),
    }
    if let Some(strict) = function.flag("strict")? {
        out.member("strict");
        out.raw(if strict { "true" } else { "false" });
    }
    out.raw("}");
    function.finish()?;
    tool.finish()
}

/// The schema of a function that takes nothing.
const NO_PARAMETERS: &str = r#"{"type":"object","properties":{}}"#;

fn write_schema(schema: &RawValue, place: &Place<'_>, out: &mut Out) -> Result<(), Refusal> {
    let schema = schema.get();
    let inner = schema.strip_prefix('{').and_then(|schema| schema.strip_suffix('}'));
    match inner.map(str::trim) {
        None => return Err(Refusal::invalid(place, "a JSON schema")),
        Some("") => out.raw(NO_PARAMETERS),
        Some(_) => out.raw(schema),
    }
    Ok(())
}

fn write_choice(
    json: &RawValue,
    place: &Place<'_>,
    parallel: Option<bool>,
    out: &mut Out,
) -> Result<(), Refusal> {
    out.member("tool_choice");
    if json.get().starts_with('"') {
        match &*text(json, place)? {
            "none" => out.raw(r#"{"type":"none"}"#),
            "auto" => write_named_choice("auto", parallel, out),
            "required" => write_named_choice("any", parallel, out),
            other => {
                let why = "it is none, auto, required or a function.";
                return Err(Refusal::unsupported_value(place, other, why));
            }
        }
        return Ok(());
    }
    let mut choice = Object::of(json, *place)?;
    let kind = choice.require_text("type")?;
    if kind != "function" {
        let why = "it is none, auto, required or a function.";
        return Err(Refusal::unsupported_value(&place.member("type"), &kind, why));
    }
    let mut function = Object::of(choice.require("function")?, place.member("function"))?;
    out.raw("{\"type\":\"tool\",\"name\":");
    out.text(&function.require_text("name")?);
    write_parallel(parallel, out);
    out.raw("}");
    function.finish()?;
    choice.finish()
}

fn write_named_choice(kind: &str, parallel: Option<bool>, out: &mut Out) {
    out.raw("{\"type\":");
    out.text(kind);
    write_parallel(parallel, out);
    out.raw("}");
}

fn write_parallel(parallel: Option<bool>, out: &mut Out) {
    if let Some(parallel) = parallel {
        out.member("disable_parallel_tool_use");
        out.raw(if parallel { "false" } else { "true" });
    }
}
