//! Now: the call goes to the backend, the answer streams back as it arrives.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Response, StatusCode};
use offpeak_core::outcome::DidItRun;

use crate::backends::{Backend, PreparedCall};
use crate::body::ReplyBody;
use crate::gateway::Gateway;
use crate::reply::Refusal;
use crate::reply::stamp;
use crate::upstream::SendError;

/// Headers that concern one connection and not the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];

/// What the client says to offpeak and not to the provider.
const FOR_OFFPEAK: [HeaderName; 6] = [
    HOST,
    CONTENT_LENGTH,
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-offpeak-sla"),
];

/// A real-time call, ready to be sent.
pub struct NowCall {
    /// Where to.
    pub backend: Arc<Backend>,
    /// How.
    pub call: Arc<PreparedCall>,
}

/// Runs a call and passes on whatever the provider answers.
pub async fn run(
    gateway: &Gateway,
    call: &NowCall,
    mut headers: HeaderMap,
    body: Bytes,
) -> Result<Response<ReplyBody>, Refusal> {
    strip(&mut headers);
    for name in FOR_OFFPEAK {
        headers.remove(name);
    }
    let body = call.call.dress(&mut headers, body).map_err(|error| {
        Refusal::bad_request("invalid_json", format!("The request's body cannot be edited: {error}"))
    })?;
    let upstream = &call.backend.upstream;
    match upstream.send(Method::POST, call.call.url.clone(), headers, body.into()).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            strip(&mut head.headers);
            gateway.metrics.answered("realtime", head.status.as_u16());
            let mut response = Response::from_parts(head, ReplyBody::Passed(body));
            *response.version_mut() = http::Version::HTTP_11;
            stamp(&mut response, &gateway.ids.next(), "realtime");
            Ok(response)
        }
        Err(error) => {
            tracing::warn!(backend = %call.backend.id, %error, "a real-time call got no answer");
            Err(no_answer(&error, call.backend.id.as_str()))
        }
    }
}

/// Removes the headers of one connection, those that it names itself included.
fn strip(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(CONNECTION).cloned() {
        let named = named.to_str().unwrap_or_default().split(',');
        for name in named.filter_map(|name| HeaderName::try_from(name.trim()).ok()) {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn no_answer(error: &SendError, backend: &str) -> Refusal {
    let (status, code) = match (error.ran, error.timed_out) {
        (DidItRun::NotSent, _) => (StatusCode::BAD_GATEWAY, "backend_unreachable"),
        (_, true) => (StatusCode::GATEWAY_TIMEOUT, "backend_timeout"),
        (_, false) => (StatusCode::BAD_GATEWAY, "backend_broke_off"),
    };
    let message = match error.ran {
        DidItRun::NotSent => {
            format!("The backend '{backend}' cannot be reached; the request was not sent. Try again.")
        }
        _ => format!(
            "The backend '{backend}' gave no answer; it may have run the request. Try again if that is harmless."
        ),
    };
    // What never left may be sent again by the SDK at once.
    let retry_after_s = (error.ran == DidItRun::NotSent).then_some(1);
    Refusal { retry_after_s, ..Refusal::new(status, code, message) }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("x-other", "2"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
    }
}
