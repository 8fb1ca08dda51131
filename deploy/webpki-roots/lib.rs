//! No authorities. The drivers of the databases trust those that are compiled in *beside* those that they are given: with
//! Mozilla's, one's own authority would not be the only one that may sign a database server's certificate.

#![no_std]

/// None.
pub const TLS_SERVER_ROOTS: &[pki_types::TrustAnchor<'static>] = &[];
