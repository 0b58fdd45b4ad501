//! What differs between providers that speak the same API: paths, names and limits, in one value.

/// A provider's names for things. A further provider is a further value.
#[derive(Debug)]
pub struct Dialect {
    /// Endpoints for real-time calls and batches.
    pub endpoints: &'static [&'static str],
    /// The endpoints among them that take `service_tier`.
    pub tiered_endpoints: &'static [&'static str],
    /// Where files are uploaded, listed, read and deleted.
    pub files: &'static str,
    /// Where batches are created, listed, polled and cancelled.
    pub batches: &'static str,
    /// The `purpose` of a batch's input file.
    pub purpose: &'static str,
    /// The `completion_window` of a batch.
    pub window: &'static str,
    /// The same in milliseconds.
    pub window_ms: u64,
    /// The member of a batch's metadata that holds offpeak's mark.
    pub mark: &'static str,
    /// How many files are listed at once.
    pub files_a_page: u32,
    /// How many batches are listed at once. A batch is shown with up to 8 KiB of metadata, and the daemon passes on 1 MiB
    /// of an answer.
    pub batches_a_page: u32,
    /// Codes of errors that pass: the same batch may be accepted later.
    pub temporary_codes: &'static [&'static str],
    /// Codes of items that the provider never ran.
    pub never_ran_codes: &'static [&'static str],
    /// The most requests in a batch.
    pub max_requests: u32,
    /// The most bytes in a batch's file.
    pub max_bytes: u64,
    /// The most batches that may be created in an hour.
    pub max_batches_an_hour: u32,
}

/// OpenAI itself, as its API reference and batch guide describe it.
pub const OPENAI: Dialect = Dialect {
    endpoints: &[
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/moderations",
    ],
    tiered_endpoints: &["/v1/chat/completions", "/v1/responses"],
    files: "/v1/files",
    batches: "/v1/batches",
    purpose: "batch",
    window: "24h",
    window_ms: 24 * 3_600_000,
    mark: "offpeak_batch",
    files_a_page: 100,
    batches_a_page: 50,
    temporary_codes: &["token_limit_exceeded", "rate_limit_exceeded", "server_error", "internal_error"],
    never_ran_codes: &["batch_expired", "batch_cancelled"],
    max_requests: 50_000,
    max_bytes: 200_000_000,
    max_batches_an_hour: 2_000,
};
