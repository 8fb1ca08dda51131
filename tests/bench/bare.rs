//! The limit behind the ceiling: prepared frames on a bare socket, by hand. What a client library costs is the difference.

use std::collections::BTreeSet;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use uuid::Uuid;

use crate::stage::{EXCHANGE, ROUTING_KEY, body};

/// As the relay publishes: a window of 1,000 in four batches, each on a channel of its own.
pub(crate) const CHANNELS: usize = 4;
const BATCHES: usize = 4;
const BATCH: usize = 250;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;

const BASIC_ACK: (u16, u16) = (60, 80);

/// Messages a second, from the first confirmed batch to the last, over 1 to `CHANNELS` channels. With one, its batches
/// follow each other without a gap: the most that can be had while all messages keep their order.
pub(crate) fn measure(port: u16, count: usize, channels: usize) -> f64 {
    let mut wire = Wire::log_in(port);
    for channel in 1..=channels {
        wire.call(channel, &[&[0, 20, 0, 10], short("").as_slice()].concat());
        wire.call(channel, &[0, 85, 0, 10, 0]);
    }
    let mut published = vec![0_u64; channels + 1];
    let mut slots: Vec<_> = (0..BATCHES).map(|slot| Slot::new(1 + slot % channels)).collect();
    for slot in &mut slots {
        slot.publish(&mut wire, &mut published);
    }
    let mut confirmed = Vec::new();
    while slots.iter().any(|slot| !slot.awaited.is_empty()) {
        let (channel, method, arguments) = wire.method();
        assert_eq!(method, BASIC_ACK, "a confirm");
        let tag = u64::from_be_bytes(arguments[..8].try_into().expect("a delivery tag"));
        let multiple = arguments[8] & 1 == 1;
        for slot in slots.iter_mut().filter(|slot| slot.channel == channel) {
            if slot.confirm(tag, multiple) {
                confirmed.push(Instant::now());
                if (confirmed.len() + BATCHES - 1) * BATCH < count {
                    slot.publish(&mut wire, &mut published);
                }
            }
        }
    }
    let (first, last) = (confirmed[0], confirmed[confirmed.len() - 1]);
    ((confirmed.len() - 1) * BATCH) as f64 / (last - first).as_secs_f64()
}

/// One batch in flight, and the next in its place.
struct Slot {
    channel: usize,
    frames: Vec<u8>,
    awaited: BTreeSet<u64>,
}

impl Slot {
    fn new(channel: usize) -> Self {
        Self {
            channel,
            frames: prepare(channel),
            awaited: BTreeSet::new(),
        }
    }

    fn publish(&mut self, wire: &mut Wire, published: &mut [u64]) {
        wire.stream.write_all(&self.frames).expect("it writes");
        let first = published[self.channel] + 1;
        published[self.channel] += BATCH as u64;
        self.awaited.extend(first..=published[self.channel]);
    }

    /// Whether that was its last confirm.
    fn confirm(&mut self, tag: u64, multiple: bool) -> bool {
        let before = self.awaited.len();
        if multiple {
            self.awaited = self.awaited.split_off(&(tag + 1));
        } else {
            self.awaited.remove(&tag);
        }
        before > 0 && self.awaited.is_empty()
    }
}

struct Wire {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Wire {
    fn log_in(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the broker is up");
        stream.set_nodelay(true).expect("a socket");
        let reader = BufReader::with_capacity(1 << 16, stream.try_clone().expect("a socket"));
        let mut wire = Self { stream, reader };
        wire.stream.write_all(b"AMQP\x00\x00\x09\x01").expect("it writes");
        wire.method();
        // start-ok: no properties, PLAIN; tune-ok: what the broker offered, no heartbeat; open "/".
        let secret = b"\0guest\0guest";
        let length = u32::try_from(secret.len()).expect("short").to_be_bytes();
        let mut start = vec![0, 10, 0, 11, 0, 0, 0, 0];
        start.extend([short("PLAIN"), length.to_vec(), secret.to_vec(), short("en_US")].concat());
        wire.send(0, &start);
        let (_, _, tune) = wire.method();
        wire.send(0, &[&[0, 10, 0, 31], &tune[..6], &[0, 0]].concat());
        wire.call(0, &[&[0, 10, 0, 40], short("/").as_slice(), &[0, 0]].concat());
        wire
    }

    fn send(&mut self, channel: usize, payload: &[u8]) {
        self.stream
            .write_all(&frame(METHOD, channel, payload))
            .expect("it writes");
    }

    /// Sends a method and waits for the answer to it.
    fn call(&mut self, channel: usize, payload: &[u8]) {
        self.send(channel, payload);
        let (_, (class, method), _) = self.method();
        let asked = u16::from_be_bytes([payload[2], payload[3]]);
        assert_eq!((class, method), (u16::from(payload[1]), asked + 1), "the answer to it");
    }

    /// The next method: channel, class and method, arguments.
    fn method(&mut self) -> (usize, (u16, u16), Vec<u8>) {
        loop {
            let mut head = [0; 7];
            self.reader.read_exact(&mut head).expect("it reads");
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; length as usize + 1];
            self.reader.read_exact(&mut payload).expect("it reads");
            assert_eq!(payload.pop(), Some(FRAME_END));
            if head[0] == HEARTBEAT {
                continue;
            }
            let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
            let method = (number(0), number(2));
            return (
                u16::from_be_bytes([head[1], head[2]]).into(),
                method,
                payload.split_off(4),
            );
        }
    }
}

/// The frames of one batch, as the relay's messages look.
fn prepare(channel: usize) -> Vec<u8> {
    let mandatory = 1;
    let publish = [
        &[0, 60, 0, 40, 0, 0],
        short(EXCHANGE).as_slice(),
        &short(ROUTING_KEY),
        &[mandatory],
    ]
    .concat();
    // content_type, delivery_mode, message_id, timestamp: their flags, then their values in this order.
    let flags: u16 = 1 << 15 | 1 << 12 | 1 << 7 | 1 << 6;
    let mut bytes = Vec::new();
    for n in 1..=BATCH {
        let body = body(n);
        let header = [
            &[0, 60, 0, 0],
            (body.len() as u64).to_be_bytes().as_slice(),
            &flags.to_be_bytes(),
            &short("application/json"),
            &[2],
            &short(&Uuid::new_v4().to_string()),
            &1_700_000_000_u64.to_be_bytes(),
        ]
        .concat();
        for (kind, part) in [(METHOD, &publish), (HEADER, &header), (BODY, &body)] {
            bytes.extend(frame(kind, channel, part));
        }
    }
    bytes
}

fn frame(kind: u8, channel: usize, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    bytes.push(kind);
    bytes.extend(u16::try_from(channel).expect("few channels").to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).expect("a small frame").to_be_bytes());
    bytes.extend(payload);
    bytes.push(FRAME_END);
    bytes
}

fn short(text: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(text.len()).expect("a short text")];
    bytes.extend(text.as_bytes());
    bytes
}
