//! Who calls: access tokens and the operators' key ([`access`]), the identity provider's keys ([`jwks`]), queue tokens
//! ([`queue`]).

pub(crate) mod access;
pub(crate) mod jwks;
pub(crate) mod queue;
