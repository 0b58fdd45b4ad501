//! `cargo xtask <command>`: what the project does to itself.

mod ci;
mod debian;
mod licences;
mod metadata;
mod node;
mod python;
mod setup;
mod step;
mod test;

use std::process::ExitCode;

use step::TaskError;
use test::Which;

const USAGE: &str = "\
usage: cargo xtask <command>

commands:
  demo [OPTIONS]        shows offpeak at work; the options are those of `offpeak demo`, such as --keep
  test                  runs all tests: those in Rust, then official clients against the programs
  test rust             only those in Rust
  test clients [ARGS]   only those with official clients, in Python and Node; with arguments, which are pytest's, such as
                        -k ticket, only those in Python
  test node             only those with official clients in Node
  setup                 makes the WebAssembly target available that plugins are compiled for; quick when nothing is to
                        be done, and part of the commands above
  licences              checks the licences of everything that we are built from
  ci                    what has to pass before a change lands: format, lints, documentation, licences, tests, demo";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["setup"] => report(setup::run().map_err(TaskError::from)),
        ["demo", options @ ..] => report(ci::demo(options).map(|()| String::new())),
        ["test"] => report(test::run(Which::All, &[])),
        ["test", "rust"] => report(test::run(Which::Rust, &[])),
        ["test", "node"] => report(test::run(Which::Node, &[])),
        ["test", "clients", arguments @ ..] => report(test::run(Which::Clients, arguments)),
        ["licences"] => report(licences::run()),
        ["ci"] => report(ci::run()),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn report(result: Result<String, TaskError>) -> ExitCode {
    match result {
        Ok(text) => {
            if !text.is_empty() {
                println!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
