//! Encryption of what leaves the process and comes back, with a key from a file: AES-256-GCM (NIST SP 800-38D).
//!
//! Invariants: a text is decrypted only in the place that it was encrypted for, so that a part can't stand in for
//! another; no error and no `Debug` shows a key.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use thiserror::Error;

use crate::secret::{Secret, SecretError, SecretFile};

/// The keys of a file, as it was when it was read. The first one encrypts, and each of them decrypts. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct CipherKeys {
    file: SecretFile,
    keys: Arc<[CipherKey]>,
}

struct CipherKey {
    /// By which keys are compared.
    digest: Secret,
    key: LessSafeKey,
}

/// Why a file of keys can't be used. The text doesn't contain what is in the file.
#[derive(Debug, Error)]
pub enum CipherKeysError {
    /// The file can't be read.
    #[error(transparent)]
    File(#[from] SecretError),
    /// A line of the file is not a key of 32 bytes.
    #[error(
        "line {1} of {0} is no key: write 32 random bytes as 64 hexadecimal digits or in base64, for example the output \
         of `openssl rand -hex 32`"
    )]
    NoKey(PathBuf, usize),
    /// There are too many keys.
    #[error(
        "{0} has more than {MAX_KEYS} keys: delete those that no replica encrypts with any more"
    )]
    TooMany(PathBuf),
}

/// Why a text can't be encrypted or decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CipherError {
    /// The text was encrypted with another key or for another place, or was changed, or never was encrypted.
    #[error("it was not encrypted with this key")]
    OtherKey,
    /// The system's random number generator failed.
    #[error("the system gave no random numbers")]
    NoRandomNumbers,
}

/// The size of a key.
const KEY_BYTES: usize = 32;

/// The most keys of a file. While keys change, it has two; each more costs an attempt to decrypt.
const MAX_KEYS: usize = 8;

// === impl CipherKeys ===

impl CipherKeys {
    /// Reads the keys from a file: one a line, empty lines aside. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// When the file can't be read, or a line of it is not a key of 32 bytes.
    pub fn read(file: &SecretFile) -> Result<Self, CipherKeysError> {
        let text = file.read_password()?;
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let keys = lines.map(|(index, line)| {
            let path = || file.path().to_owned();
            CipherKey::parse(line.trim()).ok_or_else(|| CipherKeysError::NoKey(path(), index + 1))
        });
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(SecretError::Empty(file.path().to_owned()).into()),
            1..=MAX_KEYS => Ok(Self {
                file: file.clone(),
                keys: keys.into(),
            }),
            _ => Err(CipherKeysError::TooMany(file.path().to_owned())),
        }
    }

    /// The file.
    pub fn file(&self) -> &SecretFile {
        &self.file
    }

    /// Encrypts a text for one place.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn encrypt(&self, place: &[u8], text: &[u8]) -> Result<Vec<u8>, CipherError> {
        let key = self.keys.first().ok_or(CipherError::OtherKey)?;
        let mut nonce = [0; NONCE_LEN];
        // Random: a key may encrypt 2^32 texts before the chance of two equal nonces is 2^-32.
        getrandom::fill(&mut nonce).map_err(|_| CipherError::NoRandomNumbers)?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + text.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(text);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag =
            key.key
                .seal_in_place_separate_tag(nonce, Aad::from(place), &mut sealed[NONCE_LEN..]);
        // It fails for texts of many gigabytes.
        let tag = tag.map_err(|_| CipherError::OtherKey)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Decrypts a text that was encrypted for this place.
    ///
    /// # Errors
    /// When none of the keys encrypted it.
    pub fn decrypt(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CipherError> {
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(CipherError::OtherKey)?;
        for CipherKey { key, .. } in &*self.keys {
            let mut text = sealed.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            if let Ok(opened) = key.open_in_place(nonce, Aad::from(place), &mut text) {
                let length = opened.len();
                text.truncate(length);
                return Ok(text);
            }
        }
        Err(CipherError::OtherKey)
    }
}

impl fmt::Debug for CipherKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CipherKeys({} keys of {})", self.keys.len(), self.file)
    }
}

// === impl CipherKey ===

impl CipherKey {
    fn parse(text: &str) -> Option<Self> {
        let bytes = from_hex(text).or_else(|| from_base64(text))?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?);
        let digest = Secret::new(&bytes);
        Some(Self { digest, key })
    }
}

impl PartialEq for CipherKey {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for CipherKey {}

fn from_hex(text: &str) -> Option<[u8; KEY_BYTES]> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let bytes = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(high << 4 | low),
        _ => None,
    });
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// Reads base64 with or without padding, in the usual alphabet or that for URLs (RFC 4648 §4 and §5).
fn from_base64(text: &str) -> Option<[u8; KEY_BYTES]> {
    let digits = text.trim_end_matches('=');
    // 32 bytes are 43 digits, the last of which has two bits that mean nothing.
    if digits.len() != 43 || !matches!(text.len(), 43 | 44) {
        return None;
    }
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(KEY_BYTES), 0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn keys(text: &str) -> Result<CipherKeys, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, text).unwrap();
        CipherKeys::read(&SecretFile::new(&path)).map_err(|error| {
            let text = error.to_string();
            text.replace(dir.path().to_str().unwrap(), "DIR")
        })
    }

    #[test]
    fn a_text_comes_back_with_its_key_in_its_place_alone() {
        let ours = keys(HEX).unwrap();
        let sealed = ours.encrypt(b"here", b"a secret text").unwrap();
        assert_eq!(ours.decrypt(b"here", &sealed).unwrap(), b"a secret text");
        assert!(
            !sealed.windows(6).any(|part| part == b"secret"),
            "the text can't be read"
        );
        assert_ne!(
            ours.encrypt(b"here", b"a secret text").unwrap(),
            sealed,
            "a text never looks the same twice"
        );
        let failed = Err(CipherError::OtherKey);
        assert_eq!(ours.decrypt(b"there", &sealed), failed, "another place");
        let other = keys(OTHER).unwrap();
        assert_eq!(other.decrypt(b"here", &sealed), failed, "another key");
        let mut changed = sealed.clone();
        changed[NONCE_LEN] ^= 1;
        assert_eq!(ours.decrypt(b"here", &changed), failed, "a changed text");
        for length in 0..sealed.len() {
            assert_eq!(ours.decrypt(b"here", &sealed[..length]), failed, "cut off");
        }
    }

    #[test]
    fn the_first_key_encrypts_and_all_keys_decrypt() {
        let (old, new) = (keys(HEX).unwrap(), keys(OTHER).unwrap());
        let both = keys(&format!("{OTHER}\n\n{HEX}\n")).unwrap();
        let from_old = old.encrypt(b"", b"text").unwrap();
        assert_eq!(both.decrypt(b"", &from_old).unwrap(), b"text");
        let from_both = both.encrypt(b"", b"text").unwrap();
        assert_eq!(new.decrypt(b"", &from_both).unwrap(), b"text");
        assert_eq!(old.decrypt(b"", &from_both), Err(CipherError::OtherKey));
    }

    #[test]
    fn a_key_is_32_bytes_in_hex_or_base64() {
        let key = keys(HEX).unwrap();
        for same in [
            format!("  {}\r\n", HEX.to_uppercase()),
            BASE64.into(),
            BASE64.trim_end_matches('=').into(),
        ] {
            assert!(
                keys(&same).unwrap().keys == key.keys,
                "{same:?} is the same key"
            );
        }
        for wrong in [
            "secret",
            &HEX[1..],
            &HEX[2..],
            &BASE64[1..],
            "é",
            &format!("{BASE64}="),
            &format!("{HEX}00"),
        ] {
            let error = keys(wrong).unwrap_err();
            assert!(
                error.starts_with("line 1 of DIR/key is no key"),
                "{wrong:?}: {error}"
            );
            assert!(!error.contains(wrong), "the file's text isn't shown");
        }
        let error = keys(&format!("{HEX}\nx")).unwrap_err();
        assert!(error.starts_with("line 2 of DIR/key"), "{error}");
        assert!(keys("\n\n").is_err(), "an empty file has no key");
        let many = [HEX; MAX_KEYS + 1].join("\n");
        assert!(keys(&many).unwrap_err().contains("more than 8"));
        assert!(
            format!("{key:?}").starts_with("CipherKeys(1 keys of /"),
            "no key is shown"
        );
    }
}
