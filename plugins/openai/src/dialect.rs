//! What differs between providers that speak the same API: paths, names, limits and prices, in one table.
//!
//! A further provider is a further value of [`Dialect`]. What is not known of a provider is left out rather than
//! guessed: without a price there is no offer until the configuration gives one, and without a batch API that can be
//! driven over the backend's base URL there is none.

use offpeak_plugin::{DidItRun, provider::CredentialPlace};
use serde::Deserialize;

/// The dialects by the names that the configuration gives them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialectName {
    /// OpenAI itself, and whoever speaks as it does.
    #[default]
    Openai,
    /// Azure OpenAI by its v1 paths.
    Azure,
    /// `DeepInfra`.
    Deepinfra,
    /// Gemini's OpenAI-compatible surface.
    Gemini,
    /// Groq.
    Groq,
    /// Mistral.
    Mistral,
    /// Novita.
    Novita,
    /// `OpenRouter`.
    Openrouter,
    /// Perplexity.
    Perplexity,
    /// Together.
    Together,
}

impl DialectName {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Openai,
        Self::Azure,
        Self::Deepinfra,
        Self::Gemini,
        Self::Groq,
        Self::Mistral,
        Self::Novita,
        Self::Openrouter,
        Self::Perplexity,
        Self::Together,
    ];

    /// Its row of the table.
    pub fn dialect(self) -> &'static Dialect {
        match self {
            Self::Openai => &OPENAI,
            Self::Azure => &AZURE,
            Self::Deepinfra => &DEEPINFRA,
            Self::Gemini => &GEMINI,
            Self::Groq => &GROQ,
            Self::Mistral => &MISTRAL,
            Self::Novita => &NOVITA,
            Self::Openrouter => &OPENROUTER,
            Self::Perplexity => &PERPLEXITY,
            Self::Together => &TOGETHER,
        }
    }
}

/// A provider's names for things.
#[derive(Debug)]
pub struct Dialect {
    /// For messages.
    pub name: &'static str,
    /// What stands at the provider for `/v1` in the paths of the API.
    pub root: &'static str,
    /// Endpoints that lie elsewhere, and where.
    pub elsewhere: &'static [(&'static str, &'static str)],
    /// Where the credential goes.
    pub credential: Credential,
    /// Endpoints for real-time calls.
    pub endpoints: &'static [&'static str],
    /// The values of `service_tier` that may be sold as offers,
    pub tiers: &'static [&'static str],
    /// and the endpoints that take it.
    pub tiered_endpoints: &'static [&'static str],
    /// The price of the tier `flex` in thousandths of the list price, where it is known.
    pub flex_price_permille: Option<u32>,
    /// It sells responses in the background with completion windows.
    pub has_windows: bool,
    /// Its batch API, if there is one that can be driven.
    pub batch_api: Option<BatchApi>,
}

/// Where the credential goes.
#[derive(Debug, Clone, Copy)]
pub enum Credential {
    /// `authorization: Bearer`.
    Bearer,
    /// A header of this name.
    Header(&'static str),
}

impl Credential {
    /// The same in the daemon's words.
    pub fn place(self) -> CredentialPlace {
        match self {
            Self::Bearer => CredentialPlace::Bearer,
            Self::Header(name) => CredentialPlace::Header(name.to_owned()),
        }
    }
}

/// A provider's batch API. Paths stand below the root.
#[derive(Debug, Clone, Copy)]
pub struct BatchApi {
    /// Endpoints that batches may have.
    pub endpoints: &'static [&'static str],
    /// Where files are listed, read and deleted.
    pub files: &'static str,
    /// Where they are uploaded.
    pub upload: &'static str,
    /// The `purpose` of a batch's input file.
    pub purpose: &'static str,
    /// Further fields of the upload.
    pub upload_fields: &'static [(&'static str, &'static str)],
    /// The field with the file's name, where it is asked for beside the file.
    pub name_field: Option<&'static str>,
    /// Where batches are created, listed, polled and cancelled.
    pub batches: &'static str,
    /// What a creation looks like.
    pub creation: Creation,
    /// What a line of the input file looks like.
    pub line: Line,
    /// The header by which a repeated creation gives the batch that was made first.
    pub idempotency_header: Option<&'static str>,
    /// The member of a batch's metadata that holds offpeak's mark.
    pub mark: &'static str,
    /// How long the provider may take.
    pub window: Window,
    /// The states in which a batch is over; all others are on the way there.
    pub over: &'static [(&'static str, Over)],
    /// What to think of the items of an expired or cancelled batch that have no result.
    pub leftovers: DidItRun,
    /// How listings are paged.
    pub paging: Paging,
    /// How many files are listed at once.
    pub files_a_page: u32,
    /// How many batches are listed at once. A batch is shown with up to 8 KiB of metadata, and the daemon passes on 1 MiB
    /// of an answer.
    pub batches_a_page: u32,
    /// Codes of errors that pass: the same batch may be accepted later.
    pub temporary_codes: &'static [&'static str],
    /// Codes of items that the provider never ran.
    pub never_ran_codes: &'static [&'static str],
    /// The price in thousandths of the list price, where it is known.
    pub price_permille: Option<u32>,
    /// Only models that have a name of their own for batches can be used in them.
    pub needs_own_names: bool,
    /// The most requests in a batch.
    pub max_requests: u32,
    /// The most bytes in a batch's file.
    pub max_bytes: u64,
    /// The most batches that may be created in an hour.
    pub max_batches_an_hour: u32,
}

/// What a creation looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// File, endpoint, window and metadata.
    Batch,
    /// The same without metadata: there is none, and the batch is known by its file.
    BatchWithoutMetadata,
    /// Mistral's jobs: a list of files, the model, metadata, hours.
    Job,
}

/// What a line of the input file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// With method and URL.
    Whole,
    /// Id and body alone.
    Bare,
    /// The same, and the model stands in the creation instead of the body.
    BareWithoutModel,
}

/// How long a batch may take.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// As the API writes it.
    pub text: &'static str,
    /// In milliseconds.
    pub ms: u64,
    /// Which others there are, in milliseconds.
    pub choice: WindowChoice,
}

/// Which windows may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowChoice {
    /// No other.
    Fixed,
    /// Whatever the server takes: many speak this dialect, and some sell other windows.
    Any,
    /// From this to that.
    Between(u64, u64),
}

/// How a batch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// All items are answered.
    Completed,
    /// The time was over before.
    Expired,
    /// It was stopped.
    Cancelled,
    /// The provider gave it up.
    Failed,
}

/// How listings are paged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paging {
    /// By the last item of the page before.
    Cursor,
    /// By number, from 0.
    Numbered,
    /// Not at all: a listing is a plain list, or all of it comes at once.
    Whole,
}

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const RESPONSES: &str = "/v1/responses";
const MODERATIONS: &str = "/v1/moderations";

const OPENAI_ENDPOINTS: &[&str] = &[CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MODERATIONS];

/// OpenAI's batch API, as its API reference and batch guide describe it; others are told by what differs. The limits
/// of providers whose own are not known are OpenAI's, as a caution.
const OPENAI_BATCHES: BatchApi = BatchApi {
    endpoints: OPENAI_ENDPOINTS,
    files: "/files",
    upload: "/files",
    purpose: "batch",
    upload_fields: &[],
    name_field: None,
    batches: "/batches",
    creation: Creation::Batch,
    line: Line::Whole,
    idempotency_header: None,
    mark: "offpeak_batch",
    window: Window { text: "24h", ms: DAY_MS, choice: WindowChoice::Fixed },
    over: &[
        ("completed", Over::Completed),
        ("expired", Over::Expired),
        ("cancelled", Over::Cancelled),
        ("canceled", Over::Cancelled),
        ("failed", Over::Failed),
    ],
    leftovers: DidItRun::Refused,
    paging: Paging::Cursor,
    files_a_page: 100,
    batches_a_page: 50,
    temporary_codes: &["token_limit_exceeded", "rate_limit_exceeded", "server_error", "internal_error"],
    never_ran_codes: &["batch_expired", "batch_cancelled"],
    price_permille: Some(500),
    needs_own_names: false,
    max_requests: 50_000,
    max_bytes: 200_000_000,
    max_batches_an_hour: 2_000,
};

/// OpenAI itself. Servers that speak as it does sell other windows too.
pub const OPENAI: Dialect = Dialect {
    name: "openai",
    root: "/v1",
    elsewhere: &[],
    credential: Credential::Bearer,
    endpoints: OPENAI_ENDPOINTS,
    tiers: &["flex", "priority", "fast"],
    tiered_endpoints: &[CHAT, RESPONSES],
    flex_price_permille: Some(500),
    has_windows: true,
    batch_api: Some(BatchApi {
        window: Window { text: "24h", ms: DAY_MS, choice: WindowChoice::Any },
        ..OPENAI_BATCHES
    }),
};

/// Azure OpenAI by its v1 paths. Models are deployments; those for batches are deployments of their own kind. Late
/// batches are not expired.
const AZURE: Dialect = Dialect {
    name: "azure",
    root: "/openai/v1",
    credential: Credential::Header("api-key"),
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: Some(BatchApi { needs_own_names: true, max_requests: 100_000, ..OPENAI_BATCHES }),
    ..OPENAI
};

/// `DeepInfra`: OpenAI's shapes at a fifth off.
const DEEPINFRA: Dialect = Dialect {
    name: "deepinfra",
    root: "/v1/openai",
    endpoints: &[CHAT, COMPLETIONS, EMBEDDINGS],
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: Some(BatchApi {
        endpoints: &[CHAT, COMPLETIONS, EMBEDDINGS],
        price_permille: Some(800),
        ..OPENAI_BATCHES
    }),
    ..OPENAI
};

/// Gemini in real time. Files for its batches go to another API, which this dialect does not speak.
const GEMINI: Dialect = Dialect {
    name: "gemini",
    root: "/v1beta/openai",
    endpoints: &[CHAT, EMBEDDINGS],
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: None,
    ..OPENAI
};

/// Groq. What its tiers cost is not known.
const GROQ: Dialect = Dialect {
    name: "groq",
    root: "/openai/v1",
    endpoints: &[CHAT, EMBEDDINGS],
    tiers: &["flex", "performance"],
    tiered_endpoints: &[CHAT],
    flex_price_permille: None,
    has_windows: false,
    batch_api: Some(BatchApi {
        endpoints: &[CHAT],
        window: Window { text: "24h", ms: DAY_MS, choice: WindowChoice::Between(DAY_MS, 7 * DAY_MS) },
        // Its SDK says 100 MB, other pages 200.
        max_bytes: 100_000_000,
        ..OPENAI_BATCHES
    }),
    ..OPENAI
};

/// Mistral: batches are jobs with states and names of their own.
const MISTRAL: Dialect = Dialect {
    name: "mistral",
    endpoints: &[CHAT, EMBEDDINGS, MODERATIONS],
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: Some(BatchApi {
        endpoints: &[CHAT, EMBEDDINGS, MODERATIONS],
        batches: "/batch/jobs",
        creation: Creation::Job,
        line: Line::BareWithoutModel,
        window: Window { text: "24h", ms: DAY_MS, choice: WindowChoice::Between(HOUR_MS, 7 * DAY_MS) },
        over: &[
            ("SUCCESS", Over::Completed),
            ("TIMEOUT_EXCEEDED", Over::Expired),
            ("CANCELLED", Over::Cancelled),
            ("FAILED", Over::Failed),
        ],
        leftovers: DidItRun::Unknown,
        paging: Paging::Numbered,
        ..OPENAI_BATCHES
    }),
    ..OPENAI
};

/// Novita: OpenAI's shapes, within two days.
const NOVITA: Dialect = Dialect {
    name: "novita",
    root: "/openai/v1",
    endpoints: &[CHAT, COMPLETIONS],
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: Some(BatchApi {
        endpoints: &[CHAT, COMPLETIONS],
        window: Window { text: "48h", ms: 2 * DAY_MS, choice: WindowChoice::Fixed },
        ..OPENAI_BATCHES
    }),
    ..OPENAI
};

/// `OpenRouter` in real time. How its batches are polled and read is not known.
const OPENROUTER: Dialect = Dialect {
    name: "openrouter",
    root: "/api/v1",
    endpoints: &[CHAT],
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: None,
    ..OPENAI
};

/// Perplexity: OpenAI's shapes, batches of responses alone, and a creation that cannot be made twice. What its batches
/// cost is not known.
const PERPLEXITY: Dialect = Dialect {
    name: "perplexity",
    elsewhere: &[(CHAT, "/chat/completions")],
    endpoints: &[CHAT, RESPONSES],
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: Some(BatchApi {
        endpoints: &[RESPONSES],
        idempotency_header: Some("idempotency-key"),
        price_permille: None,
        ..OPENAI_BATCHES
    }),
    ..OPENAI
};

/// Together: OpenAI's steps in other words. Half the price is for selected models.
const TOGETHER: Dialect = Dialect {
    name: "together",
    endpoints: &[CHAT, COMPLETIONS, EMBEDDINGS],
    tiers: &[],
    tiered_endpoints: &[],
    flex_price_permille: None,
    has_windows: false,
    batch_api: Some(BatchApi {
        endpoints: &[CHAT],
        upload: "/files/upload",
        purpose: "batch-api",
        upload_fields: &[("file_type", "jsonl")],
        name_field: Some("file_name"),
        creation: Creation::BatchWithoutMetadata,
        line: Line::Bare,
        over: &[
            ("COMPLETED", Over::Completed),
            ("EXPIRED", Over::Expired),
            ("CANCELLED", Over::Cancelled),
            ("FAILED", Over::Failed),
        ],
        leftovers: DidItRun::Unknown,
        paging: Paging::Whole,
        max_bytes: 100_000_000,
        ..OPENAI_BATCHES
    }),
    ..OPENAI
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_agrees_with_itself() {
        for name in DialectName::ALL {
            let dialect = name.dialect();
            let configured: DialectName = serde_json::from_str(&format!("\"{}\"", dialect.name)).unwrap();
            assert_eq!(configured, name);
            assert!(dialect.root.starts_with('/') && !dialect.root.ends_with('/'), "{}", dialect.name);
            assert!(dialect.endpoints.iter().all(|endpoint| endpoint.starts_with("/v1/")));
            assert!(dialect.elsewhere.iter().all(|(endpoint, _)| dialect.endpoints.contains(endpoint)));
            assert!(dialect.tiered_endpoints.iter().all(|endpoint| dialect.endpoints.contains(endpoint)));
            assert!(dialect.tiers.is_empty() == dialect.tiered_endpoints.is_empty(), "{}", dialect.name);
            let Some(api) = dialect.batch_api else { continue };
            assert!(api.endpoints.iter().all(|endpoint| dialect.endpoints.contains(endpoint)));
            for over in [Over::Completed, Over::Expired, Over::Cancelled, Over::Failed] {
                assert!(api.over.iter().any(|(_, known)| *known == over), "{}: {over:?}", dialect.name);
            }
        }
    }
}
