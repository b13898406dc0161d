//! The store on Redis: what each operation is as a command, and what its answer means.
//!
//! One command acquires and one releases; both are scripts, so that what belongs together happens
//! at once. Invariant: an acquisition carries the last moment, by Redis's clock, at which it may
//! still be executed. One that was delayed beyond it does nothing, and so a claim that was given
//! up is known to be out of the store for good once that moment has passed.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{Cmd, ConnectionAddr, ConnectionInfo, RedisError, Value};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Answer, Claim, Fence, Pending, Store, Withdrawn};
use link::Link;

mod gather;
mod link;
mod scripts;

/// Locks in one Redis, over one multiplexed connection.
pub struct RedisStore {
    link: Arc<Link>,
    clock: Arc<Clock>,
}

/// Redis's clock as seen from here, good to a round trip.
#[derive(Debug)]
struct Clock {
    base: Instant,
    /// Redis's time at `base`, in microseconds since 1970.
    at_base: AtomicU64,
}

/// Where Redis is, and how long one command may take.
#[derive(Clone)]
pub struct Address {
    info: ConnectionInfo,
    label: Arc<str>,
    timeout: Duration,
}

/// How far apart the guessed and the real clock of Redis may be before a command on time counts as
/// late. A clock that was set forward by more costs each worker one command, whose answer sets the
/// guess right. The price of a larger slack is a longer doubt about a claim that was given up.
const SLACK: Duration = Duration::from_secs(1);

/// How often an idle connection is looked after: several times within the shortest time after which
/// load balancers and NATs forget one, a minute.
const KEEPALIVE: Duration = Duration::from_secs(10);

// === impl Address ===

impl Address {
    /// Reads a `redis://` URL. `timeout` bounds one command, the wait for a connection included.
    ///
    /// # Errors
    /// When the URL can't be read; the text doesn't hold its password.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self, String> {
        use ::redis::{IntoConnectionInfo, ProtocolVersion};
        let info = url
            .into_connection_info()
            .map_err(|error| match error.detail() {
                Some(detail) => detail.to_owned(),
                None => error.to_string(),
            })?;
        // RESP3, because its connections say when they are lost, and nobody has to find out.
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let redis = redis.set_skip_set_lib_name();
        let label = format!("{}/{}", info.addr(), redis.db()).into();
        let info = info.set_redis_settings(redis);
        Ok(Self {
            info,
            label,
            timeout,
        })
    }
}

impl Address {
    /// A connection, set up so that a turn that waits for its command waits for nothing else, and
    /// that whatever stands between neither forgets it while it is idle nor swallows what is sent.
    async fn connect(&self) -> io::Result<TcpStream> {
        let ConnectionAddr::Tcp(host, port) = self.info.addr() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE / 2);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.timeout.max(KEEPALIVE)))?;
        Ok(stream)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.label).finish()
    }
}

// === impl RedisStore ===

impl RedisStore {
    /// A store that connects at once, and again whenever the connection is lost, in a task on the
    /// current runtime which ends with the store.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(address: Address) -> Self {
        let clock = Arc::new(Clock::new());
        let link = Arc::new(Link::connect(address, Arc::clone(&clock)));
        Self { link, clock }
    }

    /// Sends a command, and reads its answer with `read`; one that can't be read is an error.
    fn ask<T: Send + 'static>(
        &self,
        command: Cmd,
        read: impl FnOnce(&Value) -> Option<T> + Send + 'static,
    ) -> Pending<T> {
        let link = Arc::clone(&self.link);
        Box::pin(async move {
            let value = link.send(|| command).await?;
            read(&value).ok_or_else(|| link.refused(&format!("odd answer {value:?}")))
        })
    }

    /// Frees the claim's lock; `read` is told whether it was there, and whether no acquisition by the
    /// claim can come any more.
    fn free<T: Send + 'static>(&self, claim: &Claim, read: fn(bool, bool) -> T) -> Pending<T> {
        let mut command = scripts::RELEASE.call(&[&keys(claim)]);
        command.arg(claim.token.as_str()).arg(claim.last_moment());
        self.ask(command, move |value| match value {
            Value::Int(bits) => Some(read(bits & 1 != 0, bits & 2 != 0)),
            _ => None,
        })
    }
}

impl Store for RedisStore {
    fn acquire(&self, claim: &Arc<Claim>) -> Pending<Answer> {
        let (link, clock) = (Arc::clone(&self.link), Arc::clone(&self.clock));
        let (command, claim) = (scripts::ACQUIRE.call(&[&keys(claim)]), Arc::clone(claim));
        Box::pin(async move {
            let attempt = || {
                let last_moment = clock.at(Instant::now() + link.timeout() + SLACK);
                claim.may_be_executed_until(last_moment);
                let mut command = command.clone();
                command
                    .arg(claim.token.as_str())
                    .arg(millis(claim.lease))
                    .arg(last_moment);
                command
            };
            // A second time only when the first came too late by a clock that was wrongly guessed;
            // its answer has put the guess right.
            for _ in 0..2 {
                match link.send(attempt).await? {
                    Value::Int(0) => return Ok(Answer::Busy),
                    Value::Int(time) => {
                        // A fence is the time, or larger where the clock was set back: then the
                        // guess is ahead, doubts last longer, and the next one puts it right.
                        clock.set(time.unsigned_abs());
                        if time > 0 {
                            return Ok(Answer::Granted(Fence(time.unsigned_abs())));
                        }
                    }
                    odd => return Err(link.refused(&format!("odd answer {odd:?}"))),
                }
            }
            Err(link.refused("the command came too late to be executed"))
        })
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> Pending<Vec<bool>> {
        let keys: Vec<_> = claims.iter().map(|claim| keys(claim)).collect();
        let mut command = scripts::EXTEND.call(&keys.iter().collect::<Vec<_>>());
        for claim in claims {
            command.arg(claim.token.as_str()).arg(millis(claim.lease));
        }
        let expected = claims.len();
        self.ask(command, move |value| match value {
            Value::Array(items) if items.len() == expected => {
                Some(items.iter().map(|item| *item == Value::Int(1)).collect())
            }
            _ => None,
        })
    }

    fn release(&self, claim: &Claim) -> Pending<bool> {
        self.free(claim, |freed, _| freed)
    }

    fn withdraw(&self, claim: &Claim) -> Pending<Withdrawn> {
        self.free(claim, |_, last| match last {
            true => Withdrawn::ForGood,
            false => Withdrawn::ForNow,
        })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("link", &self.link)
            .finish()
    }
}

/// The keys that scripts take for one claim: the lock, and the fence beside it. The braces make
/// the lock's whole name a hash tag, so that in a cluster both live in the lock's own slot.
fn keys(claim: &Claim) -> [String; 2] {
    let lock = claim.key.as_str();
    [lock.to_owned(), format!("{{{lock}}}:fence")]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === impl Clock ===

impl Clock {
    fn new() -> Self {
        Self {
            base: Instant::now(),
            at_base: AtomicU64::new(0),
        }
    }

    /// Redis has just said that it is `time`.
    fn set(&self, time: u64) {
        let at_base = time.saturating_sub(micros(self.base.elapsed()));
        self.at_base.store(at_base, Ordering::Relaxed);
    }

    /// Redis's time at a moment here.
    fn at(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.base);
        self.at_base
            .load(Ordering::Relaxed)
            .saturating_add(micros(since))
    }

    /// Reads the answer of `TIME`.
    fn set_from(&self, answer: &Value) -> Result<(), RedisError> {
        let (seconds, micros): (u64, u64) = ::redis::from_redis_value_ref(answer)?;
        self.set(seconds.saturating_mul(1_000_000).saturating_add(micros));
        Ok(())
    }
}
