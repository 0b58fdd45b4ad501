//! Questions to the ledger.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use offpeak_core::words::Timestamp;
use reqwest::Url;

use crate::body::ReplyBody;
use crate::costs::report::{self, FOCUS_BY, Query};
use crate::defer::store_failed;
use crate::gateway::Gateway;
use crate::reply::{Refusal, json_of};

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Csv,
    Focus,
}

/// `GET /admin/v1/costs?by=tenant,model,mode&from=2026-11-01&to=2026-12-01&tenant=search&format=json`: all of it may be left
/// out.
pub async fn answer(gateway: &Gateway, query: &str) -> Result<Response<ReplyBody>, Refusal> {
    let (query, form) = read(query)?;
    let report = report::sum(&gateway.store, &query).await.map_err(|error| store_failed(&error))?;
    Ok(match form {
        Form::Json => json_of(StatusCode::OK, &report.to_json()),
        Form::Csv => csv(report.to_csv()),
        Form::Focus => csv(report.to_focus()),
    })
}

fn read(text: &str) -> Result<(Query, Form), Refusal> {
    let wrong = |message: String| Refusal::bad_request("invalid_query", message);
    let mut query = Query {
        by: vec![report::Dimension::Tenant, report::Dimension::Model, report::Dimension::Mode],
        from: Timestamp(0),
        to: Timestamp::NEVER,
        tenant: None,
    };
    let mut form = Form::Json;
    // A URL is the simplest reader of its own escapes.
    let url = Url::parse(&format!("http://admin/?{text}")).map_err(|error| wrong(error.to_string()))?;
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "by" => query.by = report::dimensions(&value).map_err(wrong)?,
            "from" => query.from = report::time(&value).map_err(wrong)?,
            "to" => query.to = report::time(&value).map_err(wrong)?,
            "tenant" => query.tenant = Some(value.into_owned()),
            "format" => {
                form = match value.as_ref() {
                    "json" => Form::Json,
                    "csv" => Form::Csv,
                    "focus" => Form::Focus,
                    other => return Err(wrong(format!("format is \"{other}\": use json, csv or focus"))),
                };
            }
            other => {
                let message = format!("there is no parameter \"{other}\": use by, from, to, tenant, format");
                return Err(wrong(message));
            }
        }
    }
    if form == Form::Focus {
        query.by = FOCUS_BY.to_vec();
    }
    Ok((query, form))
}

fn csv(text: String) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"));
    response
}
