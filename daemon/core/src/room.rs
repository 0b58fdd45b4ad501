//! Whether there is room for more that waits. What waits is bounded in requests and in bytes: by lane, by tenant with its API
//! keys and models, and over all. Only what is new is held to it; what goes again has its place.

use crate::lane::Sums;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// What asks for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// Whose bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The lane's.
    Lane,
    /// That of the API key.
    Key,
    /// That of some of the tenant's models.
    Models,
    /// The tenant's.
    Tenant,
    /// That of all tenants together.
    All,
}

/// A bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// That of requests.
    Requests(Whose, u64),
    /// That of bytes.
    Bytes(Whose, u64),
}

impl Bound {
    /// No bound.
    pub const NONE: Self = Self { requests: u64::MAX, bytes: u64::MAX };

    /// Whether the load fits beside what waits.
    ///
    /// # Errors
    /// It does not.
    pub const fn check(self, whose: Whose, waiting: Sums, load: Load) -> Result<(), Full> {
        if waiting.count.saturating_add(load.requests) > self.requests {
            return Err(Full::Requests(whose, self.requests));
        }
        if waiting.bytes.saturating_add(load.bytes) > self.bytes {
            return Err(Full::Bytes(whose, self.bytes));
        }
        Ok(())
    }
}

impl Full {
    /// Whose bound it is.
    #[must_use]
    pub const fn whose(self) -> Whose {
        let (Self::Requests(whose, _) | Self::Bytes(whose, _)) = self;
        whose
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_let_in_never_exceeds_the_bound(
            requests in 1_u64..50,
            bytes in 1_u64..5000,
            loads in prop::collection::vec((1_u64..5, 0_u64..700), 1..60),
        ) {
            let bound = Bound { requests, bytes };
            let mut waiting = Sums::default();
            for (requests, bytes) in loads {
                let fits = waiting.count + requests <= bound.requests && waiting.bytes + bytes <= bound.bytes;
                let checked = bound.check(Whose::Tenant, waiting, Load { requests, bytes });
                prop_assert_eq!(checked.is_ok(), fits, "no less is let in than fits, and no more");
                if checked.is_ok() {
                    waiting.count += requests;
                    waiting.bytes += bytes;
                }
                prop_assert!(waiting.count <= bound.requests && waiting.bytes <= bound.bytes);
            }
        }
    }

    #[test]
    fn it_says_which_bound_is_reached() {
        let bound = Bound { requests: 2, bytes: 100 };
        let waiting = Sums { count: 1, bytes: 60, tokens: 0 };
        let load = |requests, bytes| Load { requests, bytes };
        assert_eq!(bound.check(Whose::Lane, waiting, load(1, 40)), Ok(()));
        assert_eq!(bound.check(Whose::Lane, waiting, load(2, 0)), Err(Full::Requests(Whose::Lane, 2)));
        assert_eq!(bound.check(Whose::All, waiting, load(1, 41)), Err(Full::Bytes(Whose::All, 100)));
        assert_eq!(
            bound.check(Whose::All, waiting, load(u64::MAX, u64::MAX)).unwrap_err().whose(),
            Whose::All
        );
    }
}
