//! Calls in real time that wait a moment for others of their kind, to be sent as one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use offpeak_core::merge::{Gathering, Joined};
use offpeak_core::words::{BackendId, Endpoint, TenantId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::merge::{Form, Part};
use crate::upstream::SendError;

/// What those have in common that can be sent as one. One tenant's calls only: an engine's error may quote what it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Where they go.
    pub backend: BackendId,
    /// What is called.
    pub endpoint: Endpoint,
    /// How they are sent, by its place in memory, which whoever sends them holds: under one offer, as one plugin has said.
    pub call: usize,
    /// Whose they are.
    pub tenant: TenantId,
    /// Headers that change what a call means.
    pub headers: Vec<(String, HeaderValue)>,
    /// What their inputs are made of, and the rest of their bodies.
    pub body: (Form, Bytes),
    /// How long their inputs are, if the engine pads.
    pub bucket: usize,
}

/// One call that waits.
pub struct Caller {
    /// What it brings.
    pub part: Part,
    /// Its body.
    pub body: Bytes,
    /// Its headers, for when it is sent alone.
    pub headers: HeaderMap,
    /// Becomes true when it leaves: from then on hanging up takes nothing back.
    pub left: Arc<AtomicBool>,
    /// Where its answer goes, and whether it is the one that tells of it.
    pub answer: oneshot::Sender<(Result<Response<Bytes>, SendError>, bool)>,
}

/// All that wait.
#[derive(Default)]
pub struct Gather(Mutex<Open>);

#[derive(Default)]
struct Open {
    by_kind: HashMap<Kind, Gathering<Caller>>,
    last: u64,
}

impl Gather {
    /// One comes; says who leaves at once, and the number of the gathering that begins with it, if one does.
    pub fn join(&self, kind: &Kind, caller: Caller, most: usize) -> (Vec<Vec<Caller>>, Option<u64>) {
        let mut open = self.0.lock();
        open.last += 1;
        let number = open.last;
        let gathering = open.by_kind.entry(kind.clone()).or_default();
        let inputs = caller.part.count();
        let Joined { leave, begins } = gathering.join(caller, inputs, most, number);
        if gathering.is_empty() {
            open.by_kind.remove(kind);
        }
        (leave, begins.then_some(number))
    }

    /// The time of a gathering is over: those who leave, if it was not full before.
    pub fn over(&self, kind: &Kind, number: u64) -> Vec<Caller> {
        let mut open = self.0.lock();
        let Some(gathering) = open.by_kind.get_mut(kind) else { return Vec::new() };
        let leave = gathering.over(number);
        if gathering.is_empty() {
            open.by_kind.remove(kind);
        }
        leave
    }
}
