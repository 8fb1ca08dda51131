//! Compression of bodies, the same bytes for every copy of a message.

use std::io::{self, Write as _};
use std::sync::Arc;

use flate2::write::GzEncoder;

use super::Message;

/// How bodies are compressed, and from which size on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// How.
    pub coding: Coding,
    /// Bodies of fewer bytes are left as they are.
    pub min_bytes: u64,
}

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// The AMQP `content_encoding`, which is HTTP's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Level 3 is zstd's default; gzip's 6 is flate2's. Neither result holds a time or a name.
    fn compress(self, body: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let room = Vec::with_capacity(body.len() / 2);
                let mut encoder = GzEncoder::new(room, flate2::Compression::default());
                encoder.write_all(body)?;
                encoder.finish()
            }
            Self::Zstd => zstd::bulk::compress(body, zstd::DEFAULT_COMPRESSION_LEVEL),
        }
    }
}

impl Compression {
    /// Whether `message` is to be compressed: it is large enough, and has no encoding of its own.
    pub fn wants(&self, message: &Message) -> bool {
        message.properties.content_encoding.is_none() && message.body.len() as u64 >= self.min_bytes
    }

    /// The messages with bodies compressed where that makes them smaller. It takes its time: large bodies
    /// want a thread of their own.
    pub fn apply(&self, batch: &[Arc<Message>]) -> Vec<Arc<Message>> {
        batch.iter().map(|message| self.one(message)).collect()
    }

    fn one(&self, message: &Arc<Message>) -> Arc<Message> {
        if !self.wants(message) {
            return message.clone();
        }
        // Writing to memory does not fail; a body that could not be compressed would still be the right one.
        let Ok(body) = self.coding.compress(&message.body) else {
            return message.clone();
        };
        if body.len() >= message.body.len() {
            return message.clone();
        }
        let mut properties = message.properties.clone();
        properties.content_encoding = Some(self.coding.name().to_owned());
        Arc::new(Message {
            body: body.into(),
            properties,
            message_id: message.message_id.clone(),
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            kind: message.kind.clone(),
            content_type: message.content_type.clone(),
            headers: message.headers.clone(),
            row: message.row,
            timestamp: message.timestamp,
            copies: message.copies,
        })
    }
}
