//! Calls that a web page makes in an operator's browser. Where no key is asked for, whoever reaches a loopback address may call,
//! and a browser reaches it for every page that it shows.

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, ORIGIN};
use http::{StatusCode, Uri};

use crate::reply::Refusal;

/// Refuses what a page of another site sends: browsers say where such calls come from, or ask for a name of the page's choice
/// that was made to mean this address.
pub fn check(headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
    let host = uri.host().or_else(|| headers.get(HOST).map_or(Some(""), |host| host.to_str().ok()));
    if headers.contains_key(ORIGIN) || !host.is_some_and(is_local) {
        let message = "Without keys, calls of web pages are not taken, nor those for another host than localhost or an \
                       address. Call http://127.0.0.1 or http://localhost; on the data plane keys help too: [tenants.<name>].";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "from_a_web_page", message));
    }
    Ok(())
}

/// A name that nobody can give to another address; none at all is no browser's.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let last_label = name.rsplit('.').next().unwrap_or_default();
    name.is_empty() || last_label.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_elsewhere_are_those_of_pages() {
        for local in [
            "127.0.0.1:8401",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8401",
            "10.0.0.7:80",
            "offpeak.localhost:9",
            "",
        ] {
            assert!(is_local(local), "{local}");
        }
        for foreign in
            ["evil.example:8401", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example", "[x]:1"]
        {
            assert!(!is_local(foreign), "{foreign}");
        }
    }

    #[test]
    fn what_says_where_it_comes_from_is_refused() {
        let uri = Uri::from_static("/v1/chat/completions");
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "localhost:8400".parse().unwrap());
        assert!(check(&headers, &uri).is_ok());
        assert!(check(&headers, &Uri::from_static("http://evil.example/v1/models")).is_err());
        headers.insert(ORIGIN, "null".parse().unwrap());
        assert_eq!(check(&headers, &uri).unwrap_err().code, "from_a_web_page");
    }
}
