//! From a `.wasm` file to a component that can be instantiated.

use std::{borrow::Cow, fs::File, io::Read, path::Path, sync::Arc};

use sha2::{Digest, Sha256};

use crate::{engine::Engine, error::HostError, limits::COMPONENT_BYTES};

/// The four bytes at the start of all WebAssembly.
const MAGIC: &[u8] = b"\0asm";

/// The eight bytes at the start of a core WebAssembly module: magic number and version 1.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// Where a plugin's component comes from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Bytes of a component, such as those of a bundled plugin.
    Bytes(&'a [u8]),
    /// A file named in the configuration.
    File(&'a Path),
    /// What was read of such a file, so that all who use it have the same.
    Read(&'a Path, &'a [u8]),
    /// One of these, if it is the very component with this SHA-256 in lower-case hex.
    Pinned(&'a Source<'a>, &'a str),
}

impl<'a> Source<'a> {
    /// The file, if it is one.
    pub(crate) fn file(self) -> Option<&'a Path> {
        match self {
            Self::Bytes(_) => None,
            Self::File(path) | Self::Read(path, _) => Some(path),
            Self::Pinned(source, _) => source.file(),
        }
    }
}

/// A compiled component. It is not yet known which world it implements.
#[derive(Clone)]
pub struct Component {
    pub(crate) name: Arc<str>,
    pub(crate) compiled: wasmtime::component::Component,
    sha256: Arc<str>,
    bytes: usize,
}

impl Component {
    /// SHA-256 of the `.wasm`, in lower-case hex: what the cache and the admin plane call it.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Size of the `.wasm`.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Engine {
    /// Reads a component, and takes its machine code from the cache or compiles it.
    pub fn load(&self, plugin: &str, source: Source<'_>) -> Result<Component, HostError> {
        let name: Arc<str> = plugin.into();
        let bytes = read(&name, source)?;
        if bytes.starts_with(CORE_MODULE) {
            return Err(not_a_component(
                name,
                "it is a core module; encode it as a component (`offpeak plugin build`, or `wasm-tools component new`)",
            ));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(not_a_component(
                name,
                "it is no WebAssembly at all; name what `offpeak plugin build` has made (build/….wasm)",
            ));
        }
        let sha256: Arc<str> = format!("{:x}", Sha256::digest(&bytes)).into();
        if let Source::Pinned(_, pinned) = source
            && pinned != &*sha256
        {
            return Err(HostError::OtherThanPinned {
                plugin: name,
                pinned: pinned.to_owned(),
                found: sha256,
            });
        }
        let size = bytes.len();
        if let Some(compiled) = self.cache().and_then(|cache| cache.get(self.wasmtime(), &sha256)) {
            return Ok(Component { name, compiled, sha256, bytes: size });
        }
        let compiled = self
            .compile(&bytes)
            .map_err(|error| not_a_component(Arc::clone(&name), &format!("{error:#}")))?;
        self.count_compilation();
        let compiled = match self.cache() {
            None => compiled,
            Some(cache) => {
                cache.put(&compiled, &sha256);
                // Mapped from the file it takes memory only where it is run.
                cache.get(self.wasmtime(), &sha256).unwrap_or(compiled)
            }
        };
        Ok(Component { name, compiled, sha256, bytes: size })
    }

    /// Compiles on threads that end with the work. What a compiler has used stays with the threads that it ran on, some 90 MiB
    /// for the bundled plugins, and the daemon would carry it for life.
    fn compile(&self, bytes: &[u8]) -> wasmtime::Result<wasmtime::component::Component> {
        let compile = || wasmtime::component::Component::from_binary(self.wasmtime(), bytes);
        match rayon::ThreadPoolBuilder::new().thread_name(|n| format!("plugin-compiler-{n}")).build() {
            Ok(threads) => threads.install(compile),
            Err(error) => {
                tracing::warn!(%error, "no threads to compile a plugin on; it is compiled on this one");
                compile()
            }
        }
    }
}

/// Reads the file of a component.
pub fn read_file(plugin: &str, path: &Path) -> Result<Vec<u8>, HostError> {
    let mut bytes = Vec::new();
    File::open(path)
        // One byte over the bound tells a file that is too large from one that just fits.
        .and_then(|file| file.take(COMPONENT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| HostError::Read { plugin: plugin.into(), path: path.to_owned(), source })?;
    Ok(bytes)
}

fn read<'a>(plugin: &Arc<str>, source: Source<'a>) -> Result<Cow<'a, [u8]>, HostError> {
    let bytes = match source {
        Source::Pinned(source, _) => return read(plugin, *source),
        Source::Bytes(bytes) | Source::Read(_, bytes) => Cow::Borrowed(bytes),
        Source::File(path) => Cow::Owned(read_file(plugin, path)?),
    };
    if bytes.len() as u64 > COMPONENT_BYTES {
        let why =
            format!("it is larger than {} MiB; strip it, or leave something out", COMPONENT_BYTES >> 20);
        return Err(not_a_component(Arc::clone(plugin), &why));
    }
    Ok(bytes)
}

fn not_a_component(plugin: Arc<str>, why: &str) -> HostError {
    HostError::NotAComponent { plugin, why: why.to_owned() }
}
