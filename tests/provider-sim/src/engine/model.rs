//! Continuous batching as arithmetic: which sequences run, and when each of them has its tokens.
//!
//! No clock and no sockets: time is passed in, in microseconds, and only grows. Steps in which nothing changes but the
//! tokens are taken together, so that a long run costs little.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::engine::options::EngineOptions;
use crate::engine::stats::{Ended, EngineStats, Reason};

/// One sequence of a call: a prompt and what is to be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Tokens to generate; 0 for an embedding.
    pub generate: u64,
    /// Whether the caller's limit ends the answer.
    pub capped: bool,
}

/// What is asked of an engine in one call.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The caller's name for the call.
    pub call: u64,
    /// Its sequences.
    pub prompts: Vec<Prompt>,
    /// Lower goes first, where the engine schedules by priority.
    pub priority: i64,
    /// Whether the caller wants to see the tokens as they come.
    pub streams: bool,
}

/// Why a call was not let in: the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Too many sequences wait.
    QueuedRequests,
    /// Too many prompt tokens wait.
    QueuedTokens,
}

#[derive(Debug)]
struct Sequence {
    call: u64,
    order: u64,
    priority: i64,
    prompt: Prompt,
    done: u64,
    /// Whether its prompt (and what it had before it was preempted) is still to be read.
    is_fresh: bool,
    arrived: u64,
    started: Option<u64>,
    first_token: Option<u64>,
    preempted: u64,
}

impl Sequence {
    /// Tokens that it holds in the cache.
    fn held(&self) -> u64 {
        self.prompt.tokens + self.done
    }

    fn left(&self) -> u64 {
        self.prompt.generate.saturating_sub(self.done)
    }
}

/// A call under way.
#[derive(Debug, Default)]
struct Open {
    left: usize,
    /// Tokens of its sequences that have ended.
    ended_tokens: u64,
    streams: bool,
}

#[derive(Debug)]
struct Step {
    end: u64,
    us: u64,
    prompt_tokens: u64,
}

/// An engine with continuous batching.
#[derive(Debug)]
pub struct EngineModel {
    options: EngineOptions,
    now: u64,
    /// Calls that the server works on before the engine sees them, with when that is.
    arriving: VecDeque<(u64, Sequence)>,
    server_free: u64,
    waiting: BTreeMap<(i64, u64), Sequence>,
    running: Vec<Sequence>,
    kv_used: u64,
    step: Option<Step>,
    calls: HashMap<u64, Open>,
    streams: usize,
    finished: Vec<u64>,
    next_order: u64,
    stats: EngineStats,
}

impl EngineModel {
    /// An idle engine at `now`, in microseconds.
    pub fn new(options: EngineOptions, now: u64) -> Self {
        Self {
            options,
            now,
            arriving: VecDeque::new(),
            server_free: now,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            kv_used: 0,
            step: None,
            calls: HashMap::new(),
            streams: 0,
            finished: Vec::new(),
            next_order: 0,
            stats: EngineStats::default(),
        }
    }

    /// How it was made.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// What it has done so far.
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.arriving.len()
    }

    /// Calls that have not ended.
    pub fn load(&self) -> usize {
        self.calls.len()
    }

    /// The part of the cache that is in use, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    pub fn cache_usage(&self) -> f64 {
        self.kv_used as f64 / self.options.kv_cache_tokens.max(1) as f64
    }

    /// Takes a call at `now`, unless the queue is full.
    pub fn submit(&mut self, submission: Submission, now: u64) -> Result<(), Rejection> {
        self.advance(now);
        let Submission { call, prompts, priority, streams } = submission;
        self.check_room(&prompts)?;
        let ready = self.server_free.max(self.now).saturating_add(self.options.call_us);
        self.server_free = ready;
        self.calls.insert(call, Open { left: prompts.len(), ended_tokens: 0, streams });
        self.streams += usize::from(streams);
        let priority = if self.options.priority_scheduling { priority } else { 0 };
        for prompt in prompts {
            let sequence = Sequence {
                call,
                order: self.next_order,
                priority,
                prompt,
                done: 0,
                is_fresh: true,
                arrived: now,
                started: None,
                first_token: None,
                preempted: 0,
            };
            self.next_order += 1;
            self.arriving.push_back((ready, sequence));
        }
        Ok(())
    }

    /// Holds the limits on what may wait. What can run at once does not wait.
    fn check_room(&mut self, prompts: &[Prompt]) -> Result<(), Rejection> {
        let free = self.options.max_num_seqs.saturating_sub(self.running.len());
        let queued = (self.waiting() + prompts.len()).saturating_sub(free);
        if self.options.max_num_queued_reqs.is_some_and(|most| queued > most) {
            self.stats.rejected_requests += 1;
            return Err(Rejection::QueuedRequests);
        }
        if let Some(most) = self.options.max_num_queued_tokens
            && queued > 0
        {
            let new: u64 = prompts.iter().map(|prompt| prompt.tokens).sum();
            let arriving = self.arriving.iter().map(|(_, sequence)| sequence);
            let old: u64 = self.waiting.values().chain(arriving).map(|sequence| sequence.prompt.tokens).sum();
            if old + new > most {
                self.stats.rejected_tokens += 1;
                return Err(Rejection::QueuedTokens);
            }
        }
        Ok(())
    }

    /// Works until `to`.
    pub fn advance(&mut self, to: u64) {
        loop {
            if let Some(step) = self.step.take() {
                if step.end > to {
                    self.now = self.now.max(to);
                    self.step = Some(step);
                    return;
                }
                self.complete(&step, 1);
                continue;
            }
            self.let_in();
            if !self.running.is_empty() {
                self.begin(to);
                continue;
            }
            match self.arriving.front() {
                Some((ready, _)) if *ready <= to => self.now = self.now.max(*ready),
                _ => {
                    self.now = self.now.max(to);
                    return;
                }
            }
        }
    }

    /// Moves what has arrived into the queue, and from there what fits among the running.
    fn let_in(&mut self) {
        while self.arriving.front().is_some_and(|(ready, _)| *ready <= self.now) {
            if let Some((_, sequence)) = self.arriving.pop_front() {
                self.waiting.insert((sequence.priority, sequence.order), sequence);
            }
        }
        let mut reading = 0;
        while self.running.len() < self.options.max_num_seqs {
            let Some(next) = self.waiting.first_entry() else { return };
            let held = next.get().held();
            let is_first = self.running.is_empty();
            let fits = self.kv_used + held < self.options.kv_cache_tokens
                && reading + held <= self.options.max_num_batched_tokens;
            if !fits && !is_first {
                return;
            }
            let mut sequence = next.remove();
            reading += held;
            self.kv_used += held;
            if sequence.started.is_none() {
                sequence.started = Some(self.now);
            }
            self.running.push(sequence);
        }
    }

    /// Begins a step, or takes all steps until `to` at once in which nothing but tokens change.
    fn begin(&mut self, to: u64) {
        let preempted = self.make_room();
        let fresh = self.running.iter().filter(|sequence| sequence.is_fresh);
        let (prompt_tokens, pooling) = fresh.fold((0, 0), |(tokens, pooling), sequence| {
            (tokens + sequence.held(), pooling + u64::from(sequence.prompt.generate == 0))
        });
        let decoding = self.running.len() - usize::try_from(pooling).unwrap_or_default();
        let us = self.options.step_us(decoding)
            + (prompt_tokens + self.padding()) * self.options.prefill_us
            + pooling * self.options.pooling_us;
        let us = us.max(1);
        // After a preemption what waits may fit again at the next step.
        let is_plain = prompt_tokens == 0 && pooling == 0 && !preempted;
        let times = if is_plain { self.uniform_steps(us, to) } else { 0 };
        let step = Step { end: self.now + us * times.max(1), us, prompt_tokens };
        if times > 0 {
            self.complete(&step, times);
        } else {
            self.step = Some(step);
        }
    }

    /// Tokens by which the embeddings of each call that are read now are padded.
    fn padding(&self) -> u64 {
        if !self.options.pads {
            return 0;
        }
        let mut calls: HashMap<u64, (u64, u64, u64)> = HashMap::new();
        for sequence in self.running.iter().filter(|it| it.is_fresh && it.prompt.generate == 0) {
            let (inputs, tokens, longest) = calls.entry(sequence.call).or_default();
            *inputs += 1;
            *tokens += sequence.held();
            *longest = sequence.held().max(*longest);
        }
        calls.values().map(|(inputs, tokens, longest)| inputs * longest - tokens).sum()
    }

    /// How many steps of `us` end by `to` in which nobody ends, nobody joins and the cache does not fill up; the last of
    /// them may be the one in which somebody ends.
    fn uniform_steps(&self, us: u64, to: u64) -> u64 {
        let until_end = self.running.iter().map(Sequence::left).min().unwrap_or(0);
        let until_to = to.saturating_sub(self.now) / us;
        let count = self.running.len() as u64;
        let until_full = self.options.kv_cache_tokens.saturating_sub(self.kv_used) / count.max(1);
        let joins = self
            .arriving
            .front()
            .map_or(u64::MAX, |(ready, _)| ready.saturating_sub(self.now).div_ceil(us).max(1));
        until_end.min(until_to).min(until_full.max(1)).min(joins)
    }

    /// Puts back what came last while the cache cannot take another token of everybody. Tells whether it had to.
    fn make_room(&mut self) -> bool {
        let before = self.stats.preemptions;
        while self.running.len() > 1
            && self.kv_used + self.running.len() as u64 > self.options.kv_cache_tokens
        {
            let last = self.running.iter().enumerate().max_by_key(|(_, it)| (it.priority, it.order));
            let Some(place) = last.map(|(place, _)| place) else { break };
            let mut sequence = self.running.swap_remove(place);
            self.kv_used -= sequence.held();
            sequence.is_fresh = true;
            sequence.preempted += 1;
            self.stats.preemptions += 1;
            self.waiting.insert((sequence.priority, sequence.order), sequence);
        }
        self.stats.preemptions > before
    }

    /// Ends `times` equal steps, the last of them at `step.end`.
    fn complete(&mut self, step: &Step, times: u64) {
        self.now = step.end;
        let tokens = step.prompt_tokens + self.running.iter().filter(|it| !it.is_fresh).count() as u64;
        self.stats.note_steps(step.us, tokens, times);
        let mut running = std::mem::take(&mut self.running);
        for sequence in &mut running {
            if std::mem::take(&mut sequence.is_fresh) {
                if sequence.preempted == 0 {
                    self.stats.prompt_tokens += sequence.prompt.tokens;
                }
                if sequence.prompt.generate == 0 {
                    continue;
                }
                sequence.done += 1;
                self.kv_used += 1;
                self.stats.generated_tokens += 1;
                if sequence.first_token.is_none() {
                    sequence.first_token = Some(self.now);
                    self.stats.note_first_token(self.now - sequence.arrived);
                }
            } else {
                sequence.done += times;
                self.kv_used += times;
                self.stats.generated_tokens += times;
                self.stats.note_gaps(step.us, times);
            }
        }
        for sequence in running {
            if sequence.left() == 0 { self.end(&sequence) } else { self.running.push(sequence) }
        }
    }

    fn end(&mut self, sequence: &Sequence) {
        self.kv_used -= sequence.held();
        let reason = if sequence.prompt.capped { Reason::Length } else { Reason::Stop };
        self.note(sequence, reason);
        let Some(open) = self.calls.get_mut(&sequence.call) else { return };
        open.ended_tokens += sequence.done;
        open.left -= 1;
        if open.left == 0 {
            self.close(sequence.call);
            self.finished.push(sequence.call);
        }
    }

    fn note(&mut self, sequence: &Sequence, reason: Reason) {
        self.stats.note_end(&Ended {
            reason,
            prompt_tokens: sequence.prompt.tokens,
            generated_tokens: sequence.done,
            limit: sequence.prompt.generate,
            preempted: sequence.preempted,
            arrived: sequence.arrived,
            started: sequence.started.unwrap_or(self.now),
            first_token: sequence.first_token.unwrap_or(self.now),
            at: self.now,
        });
    }

    fn close(&mut self, call: u64) {
        if self.calls.remove(&call).is_some_and(|open| open.streams) {
            self.streams -= 1;
        }
    }

    /// The calls that have ended since this was asked last, in the order in which they did.
    pub fn take_finished(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.finished)
    }

    /// Tokens that each streaming call under way has by now.
    pub fn progress(&self) -> HashMap<u64, u64> {
        let mut tokens = HashMap::new();
        if self.streams == 0 {
            return tokens;
        }
        for sequence in self.running.iter().chain(self.waiting.values()) {
            if let Some(open) = self.calls.get(&sequence.call).filter(|open| open.streams) {
                *tokens.entry(sequence.call).or_insert(open.ended_tokens) += sequence.done;
            }
        }
        tokens
    }

    /// Forgets a call whose caller has gone.
    pub fn cancel(&mut self, call: u64) {
        if !self.calls.contains_key(&call) {
            return;
        }
        self.close(call);
        self.arriving.retain(|(_, sequence)| sequence.call != call);
        self.waiting.retain(|_, sequence| sequence.call != call);
        let gone: u64 = self.running.iter().filter(|it| it.call == call).map(Sequence::held).sum();
        self.kv_used -= gone;
        self.running.retain(|sequence| sequence.call != call);
        if self.running.is_empty() {
            self.step = None;
        }
    }

    /// Ends every call at once, as an engine does that is told to stop. Gives each call and the tokens that the least
    /// of its sequences under way has.
    pub fn abort_all(&mut self) -> HashMap<u64, u64> {
        let arriving = std::mem::take(&mut self.arriving).into_iter().map(|(_, sequence)| sequence);
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let running = std::mem::take(&mut self.running);
        let sequences: Vec<_> = running.into_iter().chain(waiting).chain(arriving).collect();
        let mut tokens: HashMap<u64, u64> = HashMap::new();
        for sequence in &sequences {
            self.note(sequence, Reason::Abort);
            let least = tokens.entry(sequence.call).or_insert(u64::MAX);
            *least = sequence.done.min(*least);
        }
        (self.kv_used, self.streams, self.step) = (0, 0, None);
        self.calls.clear();
        tokens
    }

    /// When somebody should look again: something ends then, or earlier than that nothing does. `None` when idle.
    pub fn wake_at(&self) -> Option<u64> {
        let Some(step) = &self.step else {
            let ready = self.arriving.front().map(|(ready, _)| *ready);
            return ready.or_else(|| (!self.waiting.is_empty()).then_some(self.now));
        };
        let may_join = !self.arriving.is_empty()
            || (!self.waiting.is_empty() && self.running.len() < self.options.max_num_seqs);
        if self.streams > 0 || step.prompt_tokens > 0 || may_join {
            return Some(step.end);
        }
        let left = self.running.iter().map(Sequence::left).min().unwrap_or(1);
        Some(step.end + left.saturating_sub(1) * step.us)
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
