//! The simulated provider as a program of its own, and what its bill says in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use provider_sim::{ExecutionKey, Mode, PicoDollars, Provider};
use reqwest::Client;
use serde_json::Value;

use crate::KEY;

/// A provider in which an hour takes a second, as a process of its own: what kills the daemon does not touch it.
pub(crate) struct Simulator {
    child: Child,
    pub(crate) url: String,
}

/// What ran, in which way, and what it cost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bill {
    runs: BTreeMap<ExecutionKey, u32>,
    lines: Vec<(Mode, u64, u64)>,
}

impl Simulator {
    pub(crate) fn start(seed: u64) -> Self {
        let mut child = Command::new(program())
            .args(["--seed", &seed.to_string(), "--key", KEY, "--track-executions"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self { child, url }
    }

    /// The bill as it is now.
    pub(crate) async fn bill(&self, http: &Client) -> Bill {
        let get = async |what: &str| -> Value {
            let answer = http.get(format!("{}/sim/{what}", self.url)).send().await.unwrap();
            answer.error_for_status().unwrap().json().await.unwrap()
        };
        let (bill, executions) = (get("bill").await, get("executions").await);
        assert_eq!(bill["executions"]["untracked"], 0);
        let line = |line: &Value| {
            let mode = serde_json::from_value(line["mode"].clone()).unwrap();
            (mode, line["requests"].as_u64().unwrap(), line["cost"].as_u64().unwrap())
        };
        let run = |(key, times): (&String, &Value)| {
            let times = u32::try_from(times.as_u64().unwrap()).unwrap();
            (ExecutionKey::from_hex(key).unwrap(), times)
        };
        Bill {
            runs: executions.as_object().unwrap().iter().map(run).collect(),
            lines: bill["lines"].as_array().unwrap().iter().map(line).collect(),
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl From<&Provider> for Bill {
    fn from(provider: &Provider) -> Self {
        let bill = provider.bill();
        let lines = bill.lines.iter().map(|line| {
            let PicoDollars(cost) = line.cost;
            (line.mode, line.requests, cost)
        });
        Self { runs: bill.executions.all().collect(), lines: lines.collect() }
    }
}

impl Bill {
    /// How often this ran.
    pub(crate) fn runs(&self, key: ExecutionKey) -> u32 {
        self.runs.get(&key).copied().unwrap_or(0)
    }

    /// All that ran.
    pub(crate) fn all(&self) -> BTreeSet<ExecutionKey> {
        self.runs.keys().copied().collect()
    }

    /// Requests that were run in a way that can wait, and those that were not.
    pub(crate) fn requests(&self) -> (u64, u64) {
        self.sums(|(_, requests, _)| *requests)
    }

    /// What these cost, in pico-dollars.
    pub(crate) fn costs(&self) -> (u64, u64) {
        self.sums(|(_, _, cost)| *cost)
    }

    fn sums(&self, of: impl Fn(&(Mode, u64, u64)) -> u64) -> (u64, u64) {
        let is_now = |mode: Mode| matches!(mode, Mode::Realtime | Mode::Flex | Mode::Priority);
        let sum = |now: bool| self.lines.iter().filter(|line| is_now(line.0) == now).map(&of).sum();
        (sum(false), sum(true))
    }
}

/// It lies beside the daemon: who builds the workspace's tests builds it.
fn program() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_offpeak")).with_file_name("provider-sim");
    let program = std::env::var_os("PROVIDER_SIM_BIN").map_or(beside, PathBuf::from);
    assert!(program.exists(), "there is no {}; build it: cargo build -p provider-sim", program.display());
    program
}
