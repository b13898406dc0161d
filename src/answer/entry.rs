//! What is in the entries of an answer in the store: the head and the end as JSON, the body as it is, each encrypted if
//! there is a key.
//!
//! Invariant: an encrypted entry can be read in its own place of its own answer alone.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{AnswerEnd, AnswerHead};
use crate::cipher::{CipherError, CipherKeys};
use crate::key::SessionKey;
use crate::lock::{AnswerEntry, ClaimId, EntryKind, EntryPlace};

/// Writes and reads the entries of one answer.
pub(super) struct EntryCodec {
    key: SessionKey,
    turn: ClaimId,
    keys: Option<CipherKeys>,
}

/// What an entry says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntryContent {
    Head(AnswerHead),
    Data(Bytes),
    End(AnswerEnd),
}

/// Why an entry can't be written or read.
#[derive(Debug, Error)]
pub(super) enum EntryError {
    #[error(transparent)]
    Cipher(#[from] CipherError),
    #[error("it is encrypted, or another program wrote it")]
    Foreign,
}

/// Names and values. A value's bytes are characters up to U+00FF, because it need not be UTF-8.
type HeaderPairs = Vec<(String, String)>;

#[derive(Serialize, Deserialize)]
struct HeadJson {
    status: u16,
    headers: HeaderPairs,
}

#[derive(Serialize, Deserialize)]
struct EndJson {
    whole: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trailers: Option<HeaderPairs>,
}

// === impl EntryCodec ===

impl EntryCodec {
    /// A codec for the answer to this turn. With keys, its entries are encrypted.
    pub(super) fn new(key: &SessionKey, turn: ClaimId, keys: Option<CipherKeys>) -> Self {
        Self {
            key: key.clone(),
            turn,
            keys,
        }
    }

    /// The entry with this content, behind `before` bytes of the body.
    pub(super) fn write(
        &self,
        before: u64,
        content: &EntryContent,
    ) -> Result<AnswerEntry, EntryError> {
        let json = |json: serde_json::Result<Vec<u8>>| {
            let json = json.map_err(|_| EntryError::Foreign);
            json.map(Bytes::from)
        };
        let (kind, bytes, text) = match content {
            EntryContent::Head(AnswerHead { status, headers }) => {
                let head = HeadJson {
                    status: status.as_u16(),
                    headers: to_pairs(headers),
                };
                (EntryKind::Head, before, json(serde_json::to_vec(&head))?)
            }
            EntryContent::Data(data) => {
                let behind = before + data.len() as u64;
                (EntryKind::Data, behind, data.clone())
            }
            EntryContent::End(end) => {
                let end = match end {
                    AnswerEnd::Whole { trailers } => EndJson {
                        whole: true,
                        trailers: trailers.as_ref().map(to_pairs),
                    },
                    AnswerEnd::Aborted => EndJson {
                        whole: false,
                        trailers: None,
                    },
                };
                (EntryKind::End, before, json(serde_json::to_vec(&end))?)
            }
        };
        let place = EntryPlace { bytes, kind };
        let payload = match &self.keys {
            Some(keys) => keys.encrypt(&self.associated(place), &text)?.into(),
            None => text,
        };
        Ok(AnswerEntry { place, payload })
    }

    /// The content of an entry.
    pub(super) fn read(&self, entry: AnswerEntry) -> Result<EntryContent, EntryError> {
        let AnswerEntry { place, payload } = entry;
        let text = match &self.keys {
            Some(keys) => keys.decrypt(&self.associated(place), &payload)?.into(),
            None => payload,
        };
        let content = match place.kind {
            EntryKind::Start => None,
            EntryKind::Head => serde_json::from_slice(&text).ok().and_then(read_head),
            EntryKind::Data => Some(EntryContent::Data(text)),
            EntryKind::End => serde_json::from_slice(&text).ok().and_then(read_end),
        };
        content.ok_or(EntryError::Foreign)
    }

    /// Which entry of which answer it is.
    fn associated(&self, place: EntryPlace) -> Vec<u8> {
        let EntryPlace { bytes, kind } = place;
        format!("{} {} {bytes} {}", self.key.as_str(), self.turn, kind as u8).into()
    }
}

fn read_head(json: HeadJson) -> Option<EntryContent> {
    Some(EntryContent::Head(AnswerHead {
        status: StatusCode::from_u16(json.status).ok()?,
        headers: from_pairs(json.headers)?,
    }))
}

fn read_end(json: EndJson) -> Option<EntryContent> {
    Some(EntryContent::End(match json {
        EndJson { whole: false, .. } => AnswerEnd::Aborted,
        EndJson { trailers, .. } => AnswerEnd::Whole {
            trailers: match trailers {
                Some(pairs) => Some(from_pairs(pairs)?),
                None => None,
            },
        },
    }))
}

fn to_pairs(headers: &HeaderMap) -> HeaderPairs {
    let text = |value: &HeaderValue| {
        value
            .as_bytes()
            .iter()
            .map(|byte| char::from(*byte))
            .collect()
    };
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect()
}

fn from_pairs(pairs: HeaderPairs) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let value: Vec<u8> = value
            .chars()
            .map(|character| u8::try_from(u32::from(character)).ok())
            .collect::<Option<_>>()?;
        headers.append(
            HeaderName::try_from(name).ok()?,
            HeaderValue::from_bytes(&value).ok()?,
        );
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Epoch;

    fn codec(number: u64) -> EntryCodec {
        let turn = ClaimId {
            epoch: Epoch(1),
            number,
        };
        EntryCodec::new(&SessionKey::literal("k"), turn, None)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut headers = HeaderMap::new();
        headers.append("x-list", HeaderValue::from_static("a"));
        headers.append("x-list", HeaderValue::from_static("b"));
        let any_bytes: Vec<u8> = (0x20..=0x7e).chain(0x80..=0xff).collect();
        headers.insert("x-any", HeaderValue::from_bytes(&any_bytes).unwrap());
        for (content, behind) in [
            (
                EntryContent::Head(AnswerHead {
                    status: StatusCode::IM_A_TEAPOT,
                    headers: headers.clone(),
                }),
                7,
            ),
            (EntryContent::Data(Bytes::from_static(b"abc\0\xff")), 12),
            (EntryContent::End(AnswerEnd::Aborted), 7),
            (EntryContent::End(AnswerEnd::Whole { trailers: None }), 7),
            (
                EntryContent::End(AnswerEnd::Whole {
                    trailers: Some(headers),
                }),
                7,
            ),
        ] {
            let entry = codec(1).write(7, &content).unwrap();
            assert_eq!(entry.place.bytes, behind, "the place is behind {content:?}");
            assert_eq!(codec(1).read(entry).unwrap(), content);
        }
    }

    #[test]
    fn what_another_program_wrote_is_no_head_and_no_end() {
        for kind in [EntryKind::Start, EntryKind::Head, EntryKind::End] {
            for text in ["", "[]", "{}", r#"{"status":20,"headers":[]}"#, "\u{1}"] {
                let entry = AnswerEntry {
                    place: EntryPlace { bytes: 0, kind },
                    payload: text.into(),
                };
                assert!(codec(1).read(entry).is_err(), "{kind:?} {text:?}");
            }
        }
    }
}
