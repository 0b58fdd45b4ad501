//! The contract said in TypeScript: what componentize-qjs makes of each type, with the documentation of `wit/`.

use wit_bindgen_core::wit_parser::{
    Docs, Function, Interface, Resolve, Type, TypeDef, TypeDefKind, TypeId, TypeOwner, WorldId, WorldItem,
};

/// A module for each interface that the world has to do with.
pub(crate) fn declarations(resolve: &Resolve, world: WorldId) -> Result<String, String> {
    let world = &resolve.worlds[world];
    let mut text = format!(
        "// The world {} of the contract in wit/, as TypeScript. `offpeak plugin new` wrote it.\n",
        world.name
    );
    for (items, is_ours) in [(&world.imports, false), (&world.exports, true)] {
        for item in items.values() {
            let WorldItem::Interface { id, .. } = item else {
                return Err(format!("the world {} has something outside of its interfaces", world.name));
            };
            let interface = &resolve.interfaces[*id];
            let name = resolve.id_of(*id).ok_or("an interface without a name")?;
            let body = interface_text(resolve, interface, is_ours)?;
            put(&mut text, &format!("\ndeclare module \"{name}\" {{\n{body}}}\n"));
        }
    }
    Ok(text)
}

/// Types first; then the functions, of the daemon's interfaces as the module's default export, and of the plugin's own as a type.
fn interface_text(resolve: &Resolve, interface: &Interface, is_ours: bool) -> Result<String, String> {
    let mut text = String::new();
    for (name, id) in &interface.types {
        let type_def = &resolve.types[*id];
        comment(&mut text, &type_def.docs, 1, None);
        put(&mut text, &format!("  {}\n", definition(resolve, name, type_def)?));
    }
    if interface.functions.is_empty() {
        return Ok(text);
    }
    let name = interface.name.as_deref().ok_or("an interface without a name")?;
    if is_ours {
        put(&mut text, &format!("  /** What the plugin exports as `{}`. */\n", camel(name)));
        put(&mut text, &format!("  export interface {} {{\n", pascal(name)));
    } else {
        put(&mut text, &format!("  const {}: {{\n", camel(name)));
    }
    for function in interface.functions.values() {
        text.push_str(&signature(resolve, function)?);
    }
    if is_ours {
        text.push_str("  }\n");
    } else {
        put(&mut text, &format!("  }};\n  export default {};\n", camel(name)));
    }
    Ok(text)
}

fn definition(resolve: &Resolve, name: &str, type_def: &TypeDef) -> Result<String, String> {
    let title = pascal(name);
    Ok(match &type_def.kind {
        TypeDefKind::Record(record) => {
            let mut text = format!("export interface {title} {{\n");
            for field in &record.fields {
                comment(&mut text, &field.docs, 2, None);
                put(&mut text, &format!("    {}: {};\n", camel(&field.name), of(resolve, &field.ty)?));
            }
            text + "  }"
        }
        TypeDefKind::Enum(cases) => {
            let mut text = format!("export type {title} =");
            for case in &cases.cases {
                text.push('\n');
                comment(&mut text, &case.docs, 2, None);
                put(&mut text, &format!("    | \"{}\"", case.name));
            }
            text + ";"
        }
        TypeDefKind::Variant(variant) => {
            let mut text = format!("export type {title} =");
            for case in &variant.cases {
                text.push('\n');
                comment(&mut text, &case.docs, 2, None);
                let value = case.ty.as_ref().map(|ty| of(resolve, ty)).transpose()?;
                let value = value.map_or_else(String::new, |value| format!("; val: {value}"));
                put(&mut text, &format!("    | {{ tag: \"{}\"{value} }}", case.name));
            }
            text + ";"
        }
        TypeDefKind::Type(Type::Id(id)) => {
            let TypeOwner::Interface(owner) = resolve.types[*id].owner else {
                return Err(format!("the type {name} belongs to no interface"));
            };
            let owner = resolve.id_of(owner).ok_or("an interface without a name")?;
            let theirs = resolve.types[*id].name.as_deref().unwrap_or(name);
            format!("export type {title} = import(\"{owner}\").{};", pascal(theirs))
        }
        _ => format!("export type {title} = {};", kind(resolve, &type_def.kind)?),
    })
}

fn signature(resolve: &Resolve, function: &Function) -> Result<String, String> {
    let mut parameters = Vec::new();
    for parameter in &function.params {
        parameters.push(format!("{}: {}", camel(&parameter.name), of(resolve, &parameter.ty)?));
    }
    let (result, thrown) = match &function.result {
        None => ("void".to_owned(), None),
        Some(ty) => match result_of(resolve, ty) {
            Some((ok, error)) => (optional(resolve, ok.as_ref())?, Some(optional(resolve, error.as_ref())?)),
            None => (of(resolve, ty)?, None),
        },
    };
    let mut text = String::new();
    comment(&mut text, &function.docs, 2, thrown.as_deref());
    put(&mut text, &format!("    {}({}): {result};\n", camel(&function.name), parameters.join(", ")));
    Ok(text)
}

/// What a function that may refuse gives, and what it throws.
fn result_of(resolve: &Resolve, ty: &Type) -> Option<(Option<Type>, Option<Type>)> {
    let Type::Id(id) = ty else { return None };
    match &resolve.types[*id].kind {
        TypeDefKind::Result(result) => Some((result.ok, result.err)),
        _ => None,
    }
}

fn optional(resolve: &Resolve, ty: Option<&Type>) -> Result<String, String> {
    ty.map_or_else(|| Ok("void".to_owned()), |ty| of(resolve, ty))
}

/// A type where it is used.
fn of(resolve: &Resolve, ty: &Type) -> Result<String, String> {
    Ok(match ty {
        Type::Bool => "boolean".to_owned(),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::S8 | Type::S16 | Type::S32 | Type::S64 => {
            "number".to_owned()
        }
        Type::F32 | Type::F64 => "number".to_owned(),
        Type::Char | Type::String => "string".to_owned(),
        Type::Id(id) => return named(resolve, *id),
        Type::ErrorContext => return Err("an error context has no type in TypeScript".to_owned()),
    })
}

fn named(resolve: &Resolve, id: TypeId) -> Result<String, String> {
    let type_def = &resolve.types[id];
    match &type_def.name {
        Some(name) => Ok(pascal(name)),
        None => kind(resolve, &type_def.kind),
    }
}

fn kind(resolve: &Resolve, kind: &TypeDefKind) -> Result<String, String> {
    Ok(match kind {
        TypeDefKind::Option(inner) => format!("{} | null", of(resolve, inner)?),
        TypeDefKind::List(Type::U8) => "Uint8Array".to_owned(),
        TypeDefKind::List(inner) => {
            let inner = of(resolve, inner)?;
            if inner.contains(' ') { format!("({inner})[]") } else { format!("{inner}[]") }
        }
        TypeDefKind::Tuple(tuple) => {
            let parts: Result<Vec<_>, _> = tuple.types.iter().map(|ty| of(resolve, ty)).collect();
            format!("[{}]", parts?.join(", "))
        }
        TypeDefKind::Type(ty) => of(resolve, ty)?,
        other => return Err(format!("a {} has no type in TypeScript yet", other.as_str())),
    })
}

/// The documentation of something, `depth` steps to the right.
fn comment(text: &mut String, docs: &Docs, depth: usize, thrown: Option<&str>) {
    let indent = "  ".repeat(depth);
    let mut lines: Vec<String> =
        docs.contents.iter().flat_map(|docs| docs.trim().lines()).map(str::to_owned).collect();
    lines.extend(thrown.map(|thrown| format!("@throws {{{thrown}}} if it refuses")));
    match lines.as_slice() {
        [] => {}
        [line] => put(text, &format!("{indent}/** {line} */\n")),
        lines => {
            put(text, &format!("{indent}/**\n"));
            for line in lines {
                put(text, &format!("{indent} * {line}\n"));
            }
            put(text, &format!("{indent} */\n"));
        }
    }
}

fn put(text: &mut String, more: &str) {
    text.push_str(more);
}

/// `usual-ms` as `UsualMs`.
fn pascal(name: &str) -> String {
    name.split('-').map(capitalised).collect()
}

/// `usual-ms` as `usualMs`.
fn camel(name: &str) -> String {
    let mut words = name.split('-');
    words.next().unwrap_or_default().to_owned() + &words.map(capitalised).collect::<String>()
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
