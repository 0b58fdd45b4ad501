//! Answers out of thin air: well-formed by the contract's types, and otherwise anything. One number decides about each, so that
//! a test that found something can do so again.

use offpeak_plugin::{
    DidItRun, Header, Mode, Offer,
    provider::{
        Answer, AnswerPlan, BatchLimits, BodyPlan, Decoded, Effect, Encoded, Ending, Failure, Finish,
        Framing, ItemFailure, ItemOutcome, ItemResponse, ItemResult, Member, Multipart, Prepared, Progress,
        Reading, ReadingForm, Refusal, RefusedItem, Request, Rewritten, RewrittenChunk, Step, Surround,
        Upload,
    },
};

/// Texts that mean something to somebody.
const TEXTS: [&str; 16] = [
    "",
    "/",
    "/v1/batches",
    "v1/batches",
    "//elsewhere.test/",
    "/../../admin",
    "/a b",
    "/a\r\nx-injected: 1",
    "GET",
    "authorization",
    "host",
    "0-0",
    "1-0",
    "content-length",
    "\u{0}\u{7f}\u{202e}",
    "application/json",
];

/// A source of anything.
pub(crate) struct Dream(u64);

impl Dream {
    /// The dream that a model's name orders; none if it orders none.
    pub(crate) fn ordered(model: &str, function: &str) -> Option<Self> {
        let seed = u64::from_str_radix(model.strip_prefix("dream-")?, 16).ok()?;
        Some(Self(
            function
                .bytes()
                .fold(seed | 1, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)),
        ))
    }

    /// Each is as far from the next as can be.
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, most: u64) -> usize {
        usize::try_from(self.bits() % most.max(1)).unwrap_or(0)
    }

    /// Small, huge, or a power of two away from something.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.bits() % 8,
            1 => u64::MAX - self.bits() % 2,
            2 => 1 << self.below(64),
            _ => self.bits(),
        }
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    fn is_so(&mut self) -> bool {
        self.bits() & 1 == 1
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.is_so() { Some(make(self)) } else { None }
    }

    fn text(&mut self) -> String {
        if self.is_so() {
            return TEXTS[self.below(TEXTS.len() as u64)].to_owned();
        }
        let length = self.below(40);
        (0..length)
            .filter_map(|_| char::from_u32(u32::try_from(self.bits() % 0x11_0000).unwrap_or(0)))
            .collect()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = match self.below(8) {
            0 => 70_000,
            1..3 => 0,
            _ => self.below(200),
        };
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.bits().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    fn list<T>(&mut self, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let length = self.below(6);
        (0..length).map(|_| make(self)).collect()
    }

    fn ran(&mut self) -> DidItRun {
        [DidItRun::NotSent, DidItRun::Refused, DidItRun::Unknown, DidItRun::Ran][self.below(4)]
    }

    fn header(&mut self) -> Header {
        Header { name: self.text(), value: self.text() }
    }

    pub(crate) fn offers(&mut self) -> Vec<Offer> {
        self.list(|dream| Offer {
            name: dream.text(),
            mode: [Mode::Realtime, Mode::Background, Mode::Batch, Mode::Engine][dream.below(4)],
            price_permille: dream.small(),
            window_ms: dream.number(),
            usual_ms: dream.number(),
        })
    }

    pub(crate) fn limits(&mut self) -> Option<BatchLimits> {
        self.maybe(|dream| BatchLimits {
            max_requests: dream.small(),
            max_bytes: dream.number(),
            item_overhead_bytes: dream.small(),
            max_batches_an_hour: dream.small(),
        })
    }

    pub(crate) fn prepare(&mut self) -> Result<Prepared, Refusal> {
        if self.below(4) == 0 {
            return Err(self.refusal());
        }
        let member = |dream: &mut Self| Member { name: dream.text(), json: dream.text() };
        Ok(Prepared {
            path: self.text(),
            set_headers: self.list(Self::header),
            default_headers: self.list(Self::header),
            remove_headers: self.list(Self::text),
            body: match self.below(3) {
                0 => BodyPlan::Unchanged,
                1 => BodyPlan::SetMembers(self.list(member)),
                _ => BodyPlan::Rewrite,
            },
            answer: if self.is_so() { AnswerPlan::Unchanged } else { AnswerPlan::Rewrite },
        })
    }

    fn refusal(&mut self) -> Refusal {
        Refusal { code: self.text(), message: self.text(), param: self.maybe(Self::text) }
    }

    pub(crate) fn rewrite_request(&mut self) -> Result<Rewritten, Refusal> {
        if self.below(4) == 0 {
            return Err(self.refusal());
        }
        Ok(Rewritten { body: self.bytes(), notes: self.bytes() })
    }

    pub(crate) fn rewrite_answer(&mut self) -> Answer {
        let status = u16::try_from(self.bits() % 1100).unwrap_or(0);
        Answer { status, content_type: self.maybe(Self::text), body: self.bytes() }
    }

    pub(crate) fn rewrite_chunk(&mut self) -> RewrittenChunk {
        RewrittenChunk { state: self.bytes(), output: self.bytes() }
    }

    pub(crate) fn batch_step(&mut self) -> Result<Step, String> {
        if self.below(8) == 0 {
            return Err(self.text());
        }
        Ok(Step {
            state: self.bytes(),
            effect: self.effect(),
            provider_id: self.maybe(Self::text),
            progress: self.maybe(|dream| Progress { completed: dream.small(), failed: dream.small() }),
        })
    }

    fn effect(&mut self) -> Effect {
        match self.below(7) {
            0 => Effect::Call(Request {
                method: self.text(),
                path: self.text(),
                headers: self.list(Self::header),
                body: self.bytes(),
            }),
            1 => Effect::Upload(Upload {
                method: self.text(),
                path: self.text(),
                headers: self.list(Self::header),
                framing: self.framing(),
            }),
            2 => Effect::Wait(self.number()),
            3 => Effect::Read(Reading {
                path: self.text(),
                headers: self.list(Self::header),
                source: self.text(),
                form: if self.is_so() { ReadingForm::Lines } else { ReadingForm::One },
            }),
            4 => Effect::Results(self.list(Self::result)),
            5 => Effect::Finished(Finish {
                ending: [Ending::Completed, Ending::Expired, Ending::Cancelled][self.below(3)],
                missing: self.ran(),
            }),
            _ => Effect::Failed(Failure {
                ran: self.ran(),
                temporary: self.is_so(),
                retry_after_s: self.maybe(Self::small),
                code: self.text(),
                message: self.text(),
            }),
        }
    }

    fn framing(&mut self) -> Framing {
        match self.below(3) {
            0 => Framing::Lines,
            1 => Framing::Multipart(Multipart {
                fields: self.list(|dream| (dream.text(), dream.text())),
                file_field: self.text(),
                file_name: self.text(),
                content_type: self.text(),
            }),
            _ => Framing::JsonArray(Surround { before: self.text(), after: self.text() }),
        }
    }

    fn result(&mut self) -> ItemResult {
        let outcome = if self.is_so() {
            ItemOutcome::Response(ItemResponse {
                status: u16::try_from(self.bits() % 1100).unwrap_or(0),
                body: self.bytes(),
                request_id: self.maybe(Self::text),
            })
        } else {
            ItemOutcome::Failed(ItemFailure { ran: self.ran(), code: self.text(), message: self.text() })
        };
        ItemResult { id: self.text(), outcome }
    }

    pub(crate) fn encode_items(&mut self, ids: &[String]) -> Result<Encoded, String> {
        if self.below(8) == 0 {
            return Err(self.text());
        }
        let refused = self.list(|dream| {
            let known = ids.get(dream.below(ids.len() as u64)).filter(|_| dream.below(4) > 0).cloned();
            let id = match known {
                Some(id) => id,
                None => dream.text(),
            };
            RefusedItem { id, refusal: dream.refusal() }
        });
        Ok(Encoded { bytes: self.bytes(), refused })
    }

    pub(crate) fn decode_results(&mut self, lines: usize) -> Result<Vec<Decoded>, String> {
        if self.below(8) == 0 {
            return Err(self.text());
        }
        // Mostly as many as there are lines.
        let count = if self.below(4) == 0 { self.below(2 * lines as u64 + 2) } else { lines };
        Ok((0..count)
            .map(
                |_| if self.is_so() { Decoded::Result(self.result()) } else { Decoded::Garbage(self.text()) },
            )
            .collect())
    }
}
