//! The contract said in Go, and what makes a component of what Go's own compiler writes.

use std::{error::Error, fmt::Write as _, fs, path::Path};

use wit_bindgen_core::{
    Files,
    wit_parser::{Resolve, WorldId, WorldKey},
};
use wit_component::StringEncoding;

/// What the generator names, and what it is called in a plugin's folder. Its own runtime is a module of the Go registry; ours stands
/// beside the bindings, so that a plugin is built without any.
const NAMES: [(&str, &str); 3] = [
    ("offpeak_plugin_", ""),
    ("go.bytecodealliance.org/pkg/wit/types", "my-plugin/bindings/wit"),
    ("go.bytecodealliance.org/pkg/wit/runtime", "my-plugin/bindings/memory"),
];

/// Writes the bindings of `world` below `folder`, and returns the constant of `GoBindings` that has them.
pub(crate) fn bindings(
    mut resolve: Resolve,
    name: &str,
    world: WorldId,
    folder: &Path,
) -> Result<String, Box<dyn Error>> {
    let section = folder.join("section");
    // As a literal in Rust.
    let quoted = |path: &Path| format!("{:?}", path.to_string_lossy());
    fs::create_dir_all(folder)?;
    // At the end of an empty module: the custom section that says which world a module is of.
    let mut bytes = Vec::new();
    wit_component::embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8)?;
    fs::write(&section, bytes)?;

    let mut files = Files::default();
    let options = wit_bindgen_go::Opts {
        format: wit_bindgen_go::Format::False,
        pkg_name: Some("my-plugin/bindings".to_owned()),
        ..wit_bindgen_go::Opts::default()
    };
    options.build().generate(&mut resolve, world, &mut files)?;
    let interface = exported_interface(&resolve, world).ok_or("the world exports no interface")?;
    let mut text = format!(
        "GoBindings {{ world: {name:?}, interface: {interface:?}, section: include_bytes!({}), files: &[",
        quoted(&section)
    );
    for (path, bytes) in files.iter() {
        let ours = renamed(path);
        let at = folder.join(ours.replace('/', "+"));
        // The functions that the daemon calls are those of the plugin's own package, in the folder itself.
        let text_in_go = renamed(std::str::from_utf8(bytes)?);
        let exported = format!("\"my-plugin/bindings/export_{interface}\"");
        fs::write(&at, text_in_go.replace(&exported, &format!("export_{interface} \"my-plugin\"")))?;
        write!(text, "({:?}, include_str!({})),", format!("bindings/{ours}"), quoted(&at))?;
    }
    Ok(text + "] },")
}

fn renamed(text: &str) -> String {
    NAMES.iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}

fn exported_interface(resolve: &Resolve, world: WorldId) -> Option<String> {
    let key = resolve.worlds[world].exports.keys().next()?;
    let WorldKey::Interface(id) = key else { return None };
    resolve.interfaces[*id].name.clone()
}
