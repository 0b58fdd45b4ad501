//! What is done for a request while its backend is out of order, by route: another backend, patience, an answer of the
//! operator's own.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use offpeak_core::words::Millis;

use crate::body::ReplyBody;
use crate::config::Route;

/// All routes, in the order of the configuration.
#[derive(Default)]
pub struct Fallbacks(Vec<(Route, Arc<Fallback>)>);

/// What a route says.
#[derive(Debug, PartialEq, Eq)]
pub struct Fallback {
    /// It may go to another backend.
    pub elsewhere: bool,
    /// So long a call in real time waits for the backend.
    pub wait: Millis,
    status: StatusCode,
    /// The answer in one piece.
    body: Option<Bytes>,
    /// The answer as a stream of events.
    stream: Option<Bytes>,
}

impl Fallbacks {
    /// As they are configured.
    pub fn new(routes: &[Route]) -> Self {
        let told = |route: &Route| {
            let answer = route.answer.as_ref();
            let bytes = |text: Option<&String>| text.map(|text| Bytes::from(text.clone()));
            let status = answer.and_then(|answer| StatusCode::from_u16(answer.status).ok());
            Fallback {
                elsewhere: route.elsewhere,
                wait: route.wait,
                status: status.unwrap_or(StatusCode::OK),
                body: bytes(answer.map(|answer| &answer.body)),
                stream: bytes(answer.and_then(|answer| answer.stream.as_ref())),
            }
        };
        Self(routes.iter().map(|route| (route.clone(), Arc::new(told(route)))).collect())
    }

    /// What the first route says that fits; none if nothing is said.
    pub fn of(&self, tenant: &str, endpoint: &str, model: &str) -> Option<&Arc<Fallback>> {
        let fits = |route: &Route| {
            route.tenants.matches(tenant) && route.endpoints.matches(endpoint) && route.models.matches(model)
        };
        self.0.iter().find(|(route, _)| fits(route)).map(|(_, fallback)| fallback)
    }

    /// Whether what goes this way may go to another backend: unless a route says otherwise.
    pub fn may_go_elsewhere(&self, tenant: &str, endpoint: &str, model: &str) -> bool {
        self.of(tenant, endpoint, model).is_none_or(|fallback| fallback.elsewhere)
    }
}

/// The operator's own answer, in place of one that nobody gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIn {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
}

/// What stands with the outcome of a request that got the operator's own answer, where the provider's name for it would be.
pub const STAND_IN: &[u8] = b"offpeak:fallback";

impl Fallback {
    /// The operator's own answer for a request that waited, if there is one.
    pub fn stand_in(&self) -> Option<StandIn> {
        Some(StandIn { status: self.status, body: self.body.clone()? })
    }

    /// The operator's own answer, if there is one in the form that the caller reads.
    pub fn answer(&self, is_stream: bool) -> Option<Response<ReplyBody>> {
        let (body, kind) = if is_stream {
            (self.stream.as_ref()?, "text/event-stream")
        } else {
            (self.body.as_ref()?, "application/json")
        };
        let mut response = Response::new(ReplyBody::from(body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Some(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelPatterns, RouteAnswer};

    fn route(name: &str, models: &str, answer: Option<RouteAnswer>) -> Route {
        Route {
            name: name.to_owned(),
            tenants: ModelPatterns::any(),
            endpoints: ModelPatterns::any(),
            models: ModelPatterns::new([models]),
            elsewhere: false,
            wait: Millis(7),
            answer,
        }
    }

    #[test]
    fn the_first_route_that_fits_counts() {
        let answer = RouteAnswer { status: 203, body: "{}".to_owned(), stream: None };
        let other = Route { tenants: ModelPatterns::new(["mail"]), ..route("other", "*", None) };
        let fallbacks =
            Fallbacks::new(&[other, route("mini", "*-mini", Some(answer)), route("all", "gpt-*", None)]);
        let of = |tenant, model| fallbacks.of(tenant, "/v1/chat/completions", model);
        let mini = of("search", "gpt-mini").unwrap();
        let response = mini.answer(false).unwrap();
        assert_eq!(response.status().as_u16(), 203);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert!(mini.answer(true).is_none(), "nobody who reads a stream gets anything else");
        assert!(of("mail", "gpt-mini").unwrap().answer(false).is_none());
        assert!(of("search", "gpt-4").unwrap().answer(false).is_none());
        assert!(of("search", "o3").is_none());
        assert!(fallbacks.may_go_elsewhere("search", "/v1/chat/completions", "o3"));
        assert!(!fallbacks.may_go_elsewhere("search", "/v1/chat/completions", "gpt-4"));
    }
}
