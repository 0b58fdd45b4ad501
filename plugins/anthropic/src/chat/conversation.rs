//! The messages of a conversation.
//!
//! - What stands before the first turn (`system`, `developer`) becomes `system`; later ones stay where they are, as
//!   messages with the role `system`.
//! - The results of tools that follow each other become one turn of the user's, as Anthropic's API wants them.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{
    content::{self, Parts},
    json::{Object, Out, Place, Refusal, list, text},
};

/// Writes the members `messages` and, if there is any, `system`.
pub(super) fn write(json: &RawValue, place: &Place<'_>, out: &mut Out) -> Result<(), Refusal> {
    let mut turns = Turns { system: Vec::new(), begun: false, in_results: false, out };
    turns.out.member("messages");
    turns.out.raw("[");
    for (index, message) in list(json, place)?.into_iter().enumerate() {
        turns.message(Object::of(message, place.entry(index))?)?;
    }
    turns.end_results();
    let Turns { system, out, .. } = turns;
    out.raw("]");
    if system.iter().any(|text| !text.is_empty()) {
        out.member("system");
        out.raw("[");
        for text in system {
            content::write_text(&text, out);
        }
        out.raw("]");
    }
    Ok(())
}

struct Turns<'a, 'o> {
    /// What was said before the first turn.
    system: Vec<Cow<'a, str>>,
    begun: bool,
    /// The last turn holds results of tools and is not closed yet.
    in_results: bool,
    out: &'o mut Out,
}

impl<'a> Turns<'a, '_> {
    fn message(&mut self, mut message: Object<'a, '_>) -> Result<(), Refusal> {
        let role = message.require_text("role")?;
        if role != "tool" {
            self.end_results();
        }
        match &*role {
            "system" | "developer" => self.system(&mut message)?,
            "user" => self.user(&mut message)?,
            "assistant" => self.assistant(&mut message)?,
            "tool" => self.tool(&mut message)?,
            other => {
                let why = "the roles are system, developer, user, assistant and tool.";
                return Err(Refusal::unsupported_value(&message.place().member("role"), other, why));
            }
        }
        self.begun |= !matches!(&*role, "system" | "developer");
        if message.take("name").is_some() {
            let why = "its messages carry no names; put the name into the text.";
            return Err(Refusal::unsupported(&message.place().member("name"), why));
        }
        message.finish()
    }

    fn system(&mut self, message: &mut Object<'a, '_>) -> Result<(), Refusal> {
        let content = message.require("content")?;
        let place = message.place();
        let place = place.member("content");
        if self.begun {
            self.begin("system");
            content::write(content, &place, Parts::Texts, self.out)?;
            self.out.raw("}");
        } else {
            self.system.append(&mut content::texts(content, &place)?);
        }
        Ok(())
    }

    fn user(&mut self, message: &mut Object<'a, '_>) -> Result<(), Refusal> {
        let content = message.require("content")?;
        let place = message.place();
        self.begin("user");
        content::write(content, &place.member("content"), Parts::User, self.out)?;
        self.out.raw("}");
        Ok(())
    }

    fn assistant(&mut self, message: &mut Object<'a, '_>) -> Result<(), Refusal> {
        let place = message.place();
        for (name, why) in [
            ("audio", "it knows no audio."),
            ("function_call", "use `tool_calls` instead, which has replaced it."),
        ] {
            if message.take(name).is_some() {
                return Err(Refusal::unsupported(&place.member(name), why));
            }
        }
        refuse_annotations(message)?;
        // What the model thought is not sent back, by OpenAI's API neither.
        message.text("reasoning_content")?;
        let content = message.take("content");
        let refusal = message.text("refusal")?;
        let calls = message.take("tool_calls");

        self.begin("assistant");
        let begin = self.out.len();
        self.out.raw("[");
        let empty = self.out.len();
        if let Some(content) = content {
            content::write_blocks(content, &place.member("content"), Parts::Assistant, self.out)?;
        }
        if let Some(refusal) = refusal {
            content::write_text(&refusal, self.out);
        }
        if let Some(calls) = calls {
            let place = place.member("tool_calls");
            for (index, call) in list(calls, &place)?.into_iter().enumerate() {
                write_call(Object::of(call, place.entry(index))?, self.out)?;
            }
        }
        if self.out.len() == empty {
            self.out.truncate(begin);
            self.out.raw("\"\"}");
        } else {
            self.out.raw("]}");
        }
        Ok(())
    }

    fn tool(&mut self, message: &mut Object<'a, '_>) -> Result<(), Refusal> {
        let id = message.require_text("tool_call_id")?;
        let content = message.require("content")?;
        let place = message.place();
        if !self.in_results {
            self.begin("user");
            self.out.raw("[");
            self.in_results = true;
        }
        self.out.separate();
        self.out.raw("{\"type\":\"tool_result\",\"tool_use_id\":");
        self.out.text(&id);
        self.out.member("content");
        content::write(content, &place.member("content"), Parts::Texts, self.out)?;
        self.out.raw("}");
        Ok(())
    }

    fn begin(&mut self, role: &str) {
        self.out.separate();
        self.out.raw("{\"role\":");
        self.out.text(role);
        self.out.member("content");
    }

    fn end_results(&mut self) {
        if std::mem::take(&mut self.in_results) {
            self.out.raw("]}");
        }
    }
}

/// Clients send back the whole answer, in which the list of annotations is empty.
fn refuse_annotations(message: &mut Object<'_, '_>) -> Result<(), Refusal> {
    let Some(annotations) = message.take("annotations") else { return Ok(()) };
    let place = message.place();
    let place = place.member("annotations");
    if list(annotations, &place)?.is_empty() {
        return Ok(());
    }
    Err(Refusal::unsupported(&place, "they belong to OpenAI's own search; leave them out."))
}

/// What the model asked a tool.
fn write_call(mut call: Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let place = call.place();
    if let Some(kind) = call.text("type")?.filter(|kind| kind != "function") {
        let why = "only calls of functions can be told.";
        return Err(Refusal::unsupported_value(&place.member("type"), &kind, why));
    }
    let id = call.require_text("id")?;
    let mut function = Object::of(call.require("function")?, place.member("function"))?;
    let name = function.require_text("name")?;
    let function_place = function.place();
    let arguments_place = function_place.member("arguments");
    let arguments = text(function.require("arguments")?, &arguments_place)?;
    out.separate();
    out.raw("{\"type\":\"tool_use\",\"id\":");
    out.text(&id);
    out.member("name");
    out.text(&name);
    out.member("input");
    out.raw(&arguments_object(&arguments, &arguments_place)?);
    out.raw("}");
    function.finish()?;
    call.finish()
}

/// The arguments as an object, byte for byte.
fn arguments_object<'t>(arguments: &'t str, place: &Place<'_>) -> Result<Cow<'t, str>, Refusal> {
    let trimmed = arguments.trim();
    if trimmed.is_empty() {
        return Ok("{}".into());
    }
    match serde_json::from_str::<&RawValue>(trimmed) {
        Ok(object) if object.get().starts_with('{') => Ok(object.get().into()),
        _ => Err(Refusal::invalid(
            place,
            "the text of a JSON object, which is what tools are called with here",
        )),
    }
}
