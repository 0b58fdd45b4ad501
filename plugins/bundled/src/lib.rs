//! The bundled plugins as WebAssembly components, compiled from `plugins/` when this crate is built.

/// The provider plugins (world `provider`) by their names.
pub const PROVIDERS: [(&str, &[u8]); 3] = [("anthropic", ANTHROPIC), ("openai", OPENAI), ("vllm", VLLM)];

/// Those among them that know an engine's metrics too (world `engine`).
pub const ENGINES: [&str; 1] = ["vllm"];

/// The provider plugin for the Anthropic API.
pub const ANTHROPIC: &[u8] = include_bytes!(env!("OFFPEAK_ANTHROPIC"));

/// The provider plugin for the OpenAI API.
pub const OPENAI: &[u8] = include_bytes!(env!("OFFPEAK_OPENAI"));

/// The provider plugin for vLLM and other engines of one's own; it knows their metrics too (world `engine`).
pub const VLLM: &[u8] = include_bytes!(env!("OFFPEAK_VLLM"));

/// The default router (world `router`).
pub const SLA_ROUTER: &[u8] = include_bytes!(env!("OFFPEAK_SLA_ROUTER"));

/// The default cost policy (world `cost-policy`).
pub const STANDARD_COST: &[u8] = include_bytes!(env!("OFFPEAK_STANDARD_COST"));

/// The default retry policy (world `retry-policy`).
pub const STANDARD_RETRY: &[u8] = include_bytes!(env!("OFFPEAK_STANDARD_RETRY"));

/// What `wit-bindgen` makes of a world for plugins in C.
#[derive(Debug, Clone, Copy)]
pub struct CBindings {
    /// The world, as C spells it: the name of the files.
    pub world: &'static str,
    /// The header.
    pub header: &'static str,
    /// What is compiled with the plugin,
    pub source: &'static str,
    /// and what is linked to it: an object that says which world this is.
    pub world_type: &'static [u8],
}

macro_rules! c_bindings {
    ($($world:literal),*) => {
        [$(CBindings {
            world: $world,
            header: include_str!(concat!(env!("OFFPEAK_BINDINGS"), "/", $world, ".h")),
            source: include_str!(concat!(env!("OFFPEAK_BINDINGS"), "/", $world, ".c")),
            world_type: include_bytes!(concat!(env!("OFFPEAK_BINDINGS"), "/", $world, "_component_type.o")),
        }),*]
    };
}

/// Those of all worlds.
pub const C_BINDINGS: [CBindings; 5] =
    c_bindings!["router", "provider", "engine", "retry_policy", "cost_policy"];

/// What `wit-bindgen` makes of a world for plugins in Go, in a module of the name `my-plugin`.
#[derive(Debug, Clone, Copy)]
pub struct GoBindings {
    /// The world, as the contract spells it.
    pub world: &'static str,
    /// The interface that it exports, which is the name of the package with its types.
    pub interface: &'static str,
    /// What is appended to a compiled module: a section that says which world this is.
    pub section: &'static [u8],
    /// Paths in the plugin's folder, and texts.
    pub files: &'static [(&'static str, &'static str)],
}

include!(concat!(env!("OFFPEAK_BINDINGS"), "/go.rs"));

/// What all plugins in Go have beside the bindings: paths and texts as there.
pub const GO_RUNTIME: [(&str, &str); 3] = [
    ("bindings/component/main.go", include_str!("../../../sdk/go/bindings/component/main.go")),
    ("bindings/memory/memory.go", include_str!("../../../sdk/go/bindings/memory/memory.go")),
    ("bindings/wit/wit.go", include_str!("../../../sdk/go/bindings/wit/wit.go")),
];

/// What Go's runtime asks of the system, answered without one: an adapter, as a core module.
pub const GO_WASI: &[u8] = include_bytes!(concat!(env!("OFFPEAK_BINDINGS"), "/wasi.wasm"));

macro_rules! declarations {
    ($($world:literal),*) => {
        [$(($world, include_str!(concat!(env!("OFFPEAK_BINDINGS"), "/", $world, ".d.ts")))),*]
    };
}

/// The worlds, and their types for plugins in TypeScript.
pub const TYPESCRIPT: [(&str, &str); 5] =
    declarations!["router", "provider", "engine", "retry-policy", "cost-policy"];

#[cfg(test)]
mod tests {
    use wit_component::{DecodedWasm, decode};

    use super::*;

    /// The names of what a component imports and exports.
    fn interfaces(component: &[u8]) -> (Vec<String>, Vec<String>) {
        let DecodedWasm::Component(resolve, world) = decode(component).unwrap() else {
            panic!("not a component")
        };
        let world = &resolve.worlds[world];
        (
            world.imports.keys().map(|key| resolve.name_world_key(key)).collect(),
            world.exports.keys().map(|key| resolve.name_world_key(key)).collect(),
        )
    }

    #[test]
    fn engines_are_those_that_adapt() {
        for (name, component) in PROVIDERS {
            let adapts = interfaces(component).1.iter().any(|name| name.contains("/adapting@"));
            assert_eq!(ENGINES.contains(&name), adapts, "{name}");
        }
    }

    #[test]
    fn each_component_exports_its_roles_and_imports_the_host_alone() {
        const PROVIDING: &str = "offpeak:plugin/providing@0.1.0";
        for (component, roles) in [
            (ANTHROPIC, &[PROVIDING][..]),
            (OPENAI, &[PROVIDING]),
            (VLLM, &["offpeak:plugin/adapting@0.1.0", PROVIDING]),
            (SLA_ROUTER, &["offpeak:plugin/routing@0.1.0"]),
            (STANDARD_COST, &["offpeak:plugin/costing@0.1.0"]),
            (STANDARD_RETRY, &["offpeak:plugin/judging@0.1.0"]),
        ] {
            let (imports, mut exports) = interfaces(component);
            exports.sort_unstable();
            assert_eq!(exports, roles);
            for import in imports {
                let ours = ["offpeak:plugin/types@0.1.0", "offpeak:plugin/host@0.1.0"];
                assert!(ours.contains(&import.as_str()), "{roles:?} imports {import}");
            }
        }
    }
}
