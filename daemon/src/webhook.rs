//! Webhooks: signed as in Standard Webhooks, and never sent to an address inside.
//!
//! This sends once. Who wants it delivered keeps it in the store until this says that it was, and asks again at the times
//! of [`retry_after`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::RETRY_AFTER;
use offpeak_core::words::{Millis, Timestamp};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url};
use ring::hmac;

/// For one delivery, from the connection to the answer's head.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pauses between attempts, about as Standard Webhooks proposes; after the last one it is given up.
const SCHEDULE: [Millis; 9] = [
    Millis::from_secs(5),
    Millis::from_mins(5),
    Millis::from_mins(30),
    Millis::from_hours(2),
    Millis::from_hours(5),
    Millis::from_hours(10),
    Millis::from_hours(14),
    Millis::from_hours(20),
    Millis::from_hours(24),
];

/// The longest pause that a receiver may ask for; more would be as good as giving it up.
const ASKED_MOST_S: u64 = 24 * 3600;

/// The pause after so many attempts; none if there were enough.
pub fn retry_after(attempts: u32) -> Option<Millis> {
    let index = usize::try_from(attempts).unwrap_or(usize::MAX).saturating_sub(1);
    SCHEDULE.get(index).copied()
}

/// A secret that signs.
#[derive(Clone)]
pub struct Secret(hmac::Key);

/// A text is not a secret of Standard Webhooks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a webhook's secret is \"whsec_\" and 24 to 64 bytes in base64, such as `openssl rand -base64 32` makes them"
)]
pub struct BadSecret;

impl Secret {
    /// Reads `whsec_<base64>`.
    pub fn parse(text: &str) -> Result<Self, BadSecret> {
        let encoded = text.strip_prefix("whsec_").ok_or(BadSecret)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| BadSecret)?;
        if !(24..=64).contains(&bytes.len()) {
            return Err(BadSecret);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The value of `webhook-signature`.
    fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{seconds}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

/// A delivery failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotDelivered {
    /// What happened.
    pub message: String,
    /// Another attempt may succeed.
    pub is_passing: bool,
    /// Not before so long, says the receiver.
    pub retry_after: Option<Millis>,
}

/// Sends webhooks.
#[derive(Clone)]
pub struct Sender {
    client: Client,
    guard: Guard,
}

/// Which addresses may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Only those of the internet: what a name resolves to is looked at for each connection.
    Outside,
    /// All, because the operator says so.
    Everywhere,
}

impl Sender {
    /// A client of its own: it follows no redirect and takes no proxy, which would both lead around the guard.
    pub fn new(guard: Guard) -> reqwest::Result<Self> {
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .dns_resolver(Arc::new(Guarded(guard)))
            .build()?;
        Ok(Self { client, guard })
    }

    /// Delivers once. `id` is the same in all attempts.
    pub async fn send(
        &self,
        url: &Url,
        secret: &Secret,
        id: &str,
        body: String,
        now: Timestamp,
    ) -> Result<(), NotDelivered> {
        self.check(url)?;
        let seconds = now.0 / 1000;
        let signature = secret.sign(id, seconds, body.as_bytes());
        let request = self
            .client
            .post(url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .body(body);
        let passing = |message| NotDelivered { message, is_passing: true, retry_after: None };
        let answer = request.send().await.map_err(|error| passing(error.without_url().to_string()))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::GONE => {
                let message = "the receiver is gone (410)".to_owned();
                Err(NotDelivered { message, is_passing: false, retry_after: None })
            }
            status => {
                let asked: Option<u64> =
                    answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                let retry_after = asked.map(|seconds| Millis::from_secs(seconds.min(ASKED_MOST_S)));
                Err(NotDelivered { retry_after, ..passing(format!("the receiver answers {status}")) })
            }
        }
    }

    /// An address in the URL itself is asked of no resolver.
    fn check(&self, url: &Url) -> Result<(), NotDelivered> {
        let never = |message: &str| {
            Err(NotDelivered { message: message.to_owned(), is_passing: false, retry_after: None })
        };
        if !matches!(url.scheme(), "https" | "http") {
            return never("a webhook's URL begins with https:// or http://");
        }
        let address: Option<IpAddr> =
            url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        if self.guard == Guard::Outside && address.is_some_and(|address| !is_outside(address)) {
            return never("the webhook's address is an internal one, which webhooks are not sent to");
        }
        Ok(())
    }
}

/// Resolves names, and leaves out internal addresses. What it answers is what is connected to: a name cannot mean another
/// address a moment later.
struct Guarded(Guard);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| guard == Guard::Everywhere || is_outside(address.ip()))
                .collect();
            if allowed.is_empty() {
                return Err(
                    "the webhook's name stands for internal addresses alone, which webhooks are not sent to"
                        .into(),
                );
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// An address of the internet at large.
fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_outside_v4(address),
        IpAddr::V6(address) => is_outside_v6(address),
    }
}

fn is_outside_v4(address: Ipv4Addr) -> bool {
    let inside = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast();
    let special = match address.octets() {
        // "This" network, shared address space, protocol assignments, old relays, benchmarks, reserved.
        [0 | 240..=255, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [198, 18 | 19, ..] => true,
        [100, second, ..] => second & 0xc0 == 64,
        _ => false,
    };
    !inside && !special
}

fn is_outside_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_outside_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Addresses of IPv4 in other clothes: mapped, compatible, translated (NAT64), 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => !address.is_loopback() && v4(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => v4(high, low),
        [0x2001, 0xdb8 | 0, ..] => false,
        // Global addresses are 2000::/3; all else is local, multicast or reserved.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_standard() {
        // From the reference implementation's own test.
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for wrong in ["", "whsec_", "whsec_!", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            assert!(Secret::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn internal_addresses_are_known_in_all_their_clothes() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "203.0.113.5",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "::7f00:1",
            "fec0::1",
        ] {
            assert!(!is_outside(inside.parse().unwrap()), "{inside}");
        }
        for outside in
            ["1.1.1.1", "8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
        {
            assert!(is_outside(outside.parse().unwrap()), "{outside}");
        }
    }

    #[tokio::test]
    async fn nothing_is_sent_inside_by_address_or_by_name() {
        crate::upstream::install_crypto();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let sender = Sender::new(Guard::Outside).unwrap();
        for (host, is_passing) in [
            ("127.0.0.1", false),
            ("[::1]", false),
            ("[::ffff:127.0.0.1]", false),
            ("2130706433", false), // 127.0.0.1 as one number
            ("0x7f.1", false),
            ("localhost", true), // names may mean something else tomorrow
        ] {
            let url = Url::parse(&format!("http://{host}:{port}/")).unwrap();
            let sent = sender.send(&url, &secret, "msg_1", "{}".to_owned(), Timestamp(0)).await;
            assert_eq!(sent.unwrap_err().is_passing, is_passing, "{host}");
        }
        let url = Url::parse("file:///etc/passwd").unwrap();
        assert!(sender.send(&url, &secret, "msg_1", "{}".to_owned(), Timestamp(0)).await.is_err());
        let nobody_called = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(nobody_called.is_err());
    }

    #[test]
    fn attempts_end() {
        assert_eq!(retry_after(1), Some(Millis::from_secs(5)));
        assert_eq!(retry_after(9), Some(Millis::from_hours(24)));
        assert_eq!(retry_after(10), None);
    }

    /// A receiver that answers every call with this; returns its URL, and how often it was called.
    async fn receiver(answer: String) -> (Url, Arc<std::sync::atomic::AtomicU32>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let calls = Arc::<std::sync::atomic::AtomicU32>::default();
        let counting = calls.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let mut head = Vec::new();
                while !head.ends_with(b"{}") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, calls)
    }

    async fn send(url: &Url) -> Result<(), NotDelivered> {
        crate::upstream::install_crypto();
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        Sender::new(Guard::Everywhere)
            .unwrap()
            .send(url, &secret, "msg_1", "{}".to_owned(), Timestamp(0))
            .await
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let (inside, calls) = receiver("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        assert_eq!(send(&inside).await, Ok(()));
        for status in [301, 302, 303, 307, 308] {
            let answer = format!("HTTP/1.1 {status} x\r\nlocation: {inside}\r\ncontent-length: 0\r\n\r\n");
            let (outside, _) = receiver(answer).await;
            let error = send(&outside).await.unwrap_err();
            assert!(error.is_passing && error.message.contains(&status.to_string()), "{error}");
        }
        assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1, "by no redirect");
    }

    #[tokio::test]
    async fn a_receiver_is_believed_for_a_day_at_most() {
        for (asked, believed) in [("30", 30), ("1000000000", 86_400), ("18446744073709551615", 86_400)] {
            let answer = format!(
                "HTTP/1.1 503 x\r\nretry-after: {asked}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
            let (url, _) = receiver(answer).await;
            assert_eq!(send(&url).await.unwrap_err().retry_after, Some(Millis::from_secs(believed)));
        }
    }
}
