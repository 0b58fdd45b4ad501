//! The two threads of a store. The log's thread writes groups: whatever arrives during one sync goes into the next
//! group. The index's thread follows behind.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use offpeak_core::words::{Millis, Place, Timestamp};
use parking_lot::{Condvar, Mutex};

use crate::engine::Engine;
use crate::error::StoreError;
use crate::index::Group;
use crate::keeper::Keeper;
use crate::ops::{Op, Reply, tell};
use crate::shared::Shared;
use crate::values::Swept;

/// How long the index's thread lets groups gather when nobody waits for them: many groups in one transaction cost
/// little more than one.
const GATHER: Duration = Duration::from_millis(5);
/// So many records are applied at once.
const ENOUGH: usize = 16_384;
/// The log waits when the index is so many records behind; they are held in memory, about 150 bytes each.
const MOST_BEHIND: usize = 131_072;
/// Pause before a failed index is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Asked of the index's thread.
#[derive(Debug)]
pub(crate) enum Command {
    Sweep { now: Timestamp, since: Vec<Place>, reply: Reply<Swept> },
    Checkpoint { reply: Reply<()> },
}

/// Both threads.
#[derive(Debug)]
pub(crate) struct Threads {
    ops: Arc<OpQueue>,
    groups: Arc<GroupQueue>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    log: JoinHandle<()>,
    index: JoinHandle<Result<(), StoreError>>,
}

impl Threads {
    pub(crate) fn start(
        engine: Engine,
        keeper: Keeper,
        shared: &Arc<Shared>,
        checkpoint_every: Millis,
    ) -> io::Result<Self> {
        let (ops, groups) = (Arc::new(OpQueue::default()), Arc::new(GroupQueue::default()));
        let index = {
            let (groups, shared) = (groups.clone(), shared.clone());
            let every = checkpoint_every.into();
            thread::Builder::new()
                .name("store-index".to_owned())
                .spawn(move || IndexThread { keeper, groups, shared, every }.run())?
        };
        let log = {
            let (ops, groups, shared) = (ops.clone(), groups.clone(), shared.clone());
            thread::Builder::new()
                .name("store-log".to_owned())
                .spawn(move || run_log(engine, &ops, &groups, &shared))?
        };
        Ok(Self { ops, groups, running: Mutex::new(Some(Running { log, index })) })
    }

    pub(crate) fn submit(&self, op: Op) {
        if let Some(op) = self.ops.push(op) {
            op.refuse(StoreError::Closed);
        }
    }

    pub(crate) fn command(&self, command: Command) {
        self.groups.command(command);
    }

    /// Somebody waits for the index.
    pub(crate) fn hurry(&self) {
        self.groups.hurry();
    }

    /// Does what was asked, saves all, and ends both threads.
    pub(crate) fn stop(&self) -> Result<(), StoreError> {
        self.ops.close();
        let Some(Running { log, index }) = self.running.lock().take() else { return Ok(()) };
        let log = log.join();
        // If the log's thread panicked it could not say that nothing more comes.
        self.groups.close();
        let index = index.join();
        match (log, index) {
            (Ok(()), Ok(result)) => result,
            _ => Err(io::Error::other("a thread of the store panicked").into()),
        }
    }
}

fn run_log(mut engine: Engine, ops: &OpQueue, groups: &GroupQueue, shared: &Shared) {
    let mut taken = Vec::new();
    while ops.take(&mut taken) {
        let mut waiting = taken.drain(..);
        while waiting.len() > 0 {
            if let Err(error) = groups.wait_for_room(shared) {
                waiting.for_each(|op| op.refuse(error.clone()));
                break;
            }
            let segment = engine.end().segment;
            if let Some(written) = engine.run(&mut waiting, shared.applied()) {
                shared.count_segments(engine.end().segment - segment);
                let (group, answers) = shared.announce(written);
                groups.push(group);
                for answer in answers {
                    answer.give(Ok(()));
                }
            }
        }
    }
    if let Err(error) = engine.finish() {
        tracing::warn!(%error, "the log's unused room could not be given back");
    }
    groups.close();
}

/// Operations on their way to the log's thread.
#[derive(Debug, Default)]
struct OpQueue {
    state: Mutex<(Vec<Op>, bool)>,
    ready: Condvar,
}

impl OpQueue {
    /// Gives the operation back if the queue is closed.
    fn push(&self, op: Op) -> Option<Op> {
        let mut state = self.state.lock();
        if state.1 {
            return Some(op);
        }
        state.0.push(op);
        let was_empty = state.0.len() == 1;
        drop(state);
        if was_empty {
            self.ready.notify_one();
        }
        None
    }

    /// Waits for operations and exchanges the empty vector for them. False after the end.
    fn take(&self, into: &mut Vec<Op>) -> bool {
        let mut state = self.state.lock();
        while state.0.is_empty() {
            if state.1 {
                return false;
            }
            self.ready.wait(&mut state);
        }
        std::mem::swap(&mut state.0, into);
        true
    }

    fn close(&self) {
        self.state.lock().1 = true;
        self.ready.notify_one();
    }
}

/// Durable groups on their way to the index's thread.
#[derive(Debug, Default)]
struct GroupQueue {
    state: Mutex<Groups>,
    /// For the index's thread: there is work.
    ready: Condvar,
    /// For the log's thread: there is room.
    room: Condvar,
}

#[derive(Debug, Default)]
struct Groups {
    waiting: VecDeque<Group>,
    records: usize,
    /// Records taken and not applied yet.
    in_hand: usize,
    commands: Vec<Command>,
    is_urgent: bool,
    is_closed: bool,
}

impl GroupQueue {
    fn push(&self, group: Group) {
        let mut state = self.state.lock();
        let before = state.records;
        state.records += group.records.len();
        state.waiting.push_back(group);
        if state.waiting.len() == 1 || (before < ENOUGH && state.records >= ENOUGH) {
            self.ready.notify_one();
        }
    }

    fn command(&self, command: Command) {
        let mut state = self.state.lock();
        if state.is_closed {
            drop(state);
            refuse(command, &StoreError::Closed);
            return;
        }
        state.commands.push(command);
        self.ready.notify_one();
    }

    fn hurry(&self) {
        self.state.lock().is_urgent = true;
        self.ready.notify_one();
    }

    fn close(&self) {
        self.state.lock().is_closed = true;
        self.ready.notify_one();
    }

    /// Holds the log back while the index is far behind; an error if the index cannot follow at all.
    fn wait_for_room(&self, shared: &Shared) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        while state.records + state.in_hand >= MOST_BEHIND {
            if let Some(error) = shared.failure() {
                return Err(error);
            }
            self.room.wait(&mut state);
        }
        Ok(())
    }

    fn make_room(&self) {
        self.state.lock().in_hand = 0;
        self.room.notify_one();
    }
}

fn refuse(command: Command, error: &StoreError) {
    match command {
        Command::Sweep { reply, .. } => tell(reply, Err(error.clone())),
        Command::Checkpoint { reply } => tell(reply, Err(error.clone())),
    }
}

struct IndexThread {
    keeper: Keeper,
    groups: Arc<GroupQueue>,
    shared: Arc<Shared>,
    /// Time between checkpoints.
    every: Duration,
}

impl IndexThread {
    fn run(mut self) -> Result<(), StoreError> {
        let mut saved = Instant::now();
        loop {
            let (commands, is_closed) = self.take(saved);
            self.apply();
            for command in commands {
                self.obey(command);
            }
            if self.keeper.has_unsaved() && saved.elapsed() >= self.every {
                if let Err(error) = self.keeper.checkpoint() {
                    self.shared.fail(error);
                }
                saved = Instant::now();
            }
            if is_closed {
                return self.end();
            }
        }
    }

    /// Waits for something to do and takes the groups that there are.
    fn take(&mut self, saved: Instant) -> (Vec<Command>, bool) {
        let mut state = self.groups.state.lock();
        let has_failed = self.keeper.failed().is_some();
        if has_failed {
            self.groups.ready.wait_for(&mut state, RETRY);
        }
        while !has_failed && state.waiting.is_empty() && state.commands.is_empty() && !state.is_closed {
            if !self.keeper.has_unsaved() {
                self.groups.ready.wait(&mut state);
            } else if self.groups.ready.wait_until(&mut state, saved + self.every).timed_out() {
                break;
            }
        }
        let deadline = Instant::now() + GATHER;
        while !state.waiting.is_empty()
            && state.records < ENOUGH
            && state.commands.is_empty()
            && !state.is_urgent
            && !state.is_closed
        {
            if self.groups.ready.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.is_urgent = false;
        state.in_hand += state.records;
        state.records = 0;
        self.keeper.add(state.waiting.drain(..));
        (std::mem::take(&mut state.commands), state.is_closed)
    }

    fn apply(&mut self) {
        match self.keeper.apply() {
            Ok(groups) => {
                self.shared.advance(groups, self.keeper.applied());
                self.groups.make_room();
            }
            Err(error) => {
                self.shared.fail(error);
                // The log's thread may wait for room that does not come.
                self.groups.room.notify_one();
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Checkpoint { reply } => tell(reply, self.keeper.checkpoint()),
            Command::Sweep { now, since, reply } => {
                let swept = self.keeper.sweep(now, &since);
                if let Ok(swept) = &swept {
                    self.shared.count_swept(swept);
                }
                tell(reply, swept);
            }
        }
    }

    fn end(mut self) -> Result<(), StoreError> {
        let closed = self.keeper.close();
        self.shared.fail(StoreError::Closed);
        self.shared.give_back();
        closed
    }
}
