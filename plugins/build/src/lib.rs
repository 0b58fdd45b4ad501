//! Compiles plugin crates of this workspace into WebAssembly components.
//!
//! A build script asks for `component` and gets the path of a validated component; no tool has to be installed
//! for it. The compiler is found by [`toolchain`]: rustup's, where it has the target, or the private one that
//! `cargo xtask setup` made.
//!
//! A plugin crate is an ordinary library in the workspace, so that its logic is tested on the host. Only here it
//! becomes a `cdylib`.

#[cfg(feature = "encode")]
mod cargo;
#[cfg(feature = "encode")]
mod component;
pub mod toolchain;

#[cfg(feature = "encode")]
pub use component::{BuildError, component};
