//! For how long a reload lets nobody in: it checks the password of every client again, one after
//! another.

use std::{collections::BTreeMap, time::Duration};

use super::servers::Servers;
use crate::{auth::Desired, nats::GLANCE};

/// What a reload spends on a client whose hash has the cost 10, on the machines that we measured; one
/// more doubles it.
const AT_COST_10: Duration = Duration::from_millis(63);
/// What a server takes there to read a MiB of users, before it keeps anybody out.
const A_MIB: Duration = Duration::from_millis(200);

impl Servers {
    /// For how long a reload would let nobody in, where that is longest: servers reload side by side.
    ///
    /// `None`: nobody tells who is connected.
    pub async fn freeze(&mut self, desired: &Desired) -> Option<Duration> {
        let answers = self.look(GLANCE).await;
        let servers = self.access.clients(&answers, GLANCE).await?;
        let each = |(name, count): (&String, &usize)| {
            let cost = desired.users.get(&**name)?.credential.bcrypt_cost()?;
            Some(checks(*count, cost))
        };
        let all = |clients: &BTreeMap<String, usize>| clients.iter().filter_map(each).sum();
        servers.iter().map(all).max()
    }
}

/// What a reload spends on so many clients with hashes of this cost.
pub(crate) fn checks(count: usize, cost: u8) -> Duration {
    let one = AT_COST_10.mul_f64(2f64.powi(i32::from(cost) - 10));
    one.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// How long a reload that took so long let nobody in, if `predicted` is right for the machines that
/// we measured: this one may be slower, and then it was so while it read the file as well.
pub(crate) fn measured(predicted: Duration, file: u64, took: Duration) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "no file has 2^52 bytes")]
    let reads = A_MIB.mul_f64(file as f64 / 1_048_576.0);
    let expected = (reads + predicted).as_secs_f64();
    let slower = if expected > 0.0 { took.as_secs_f64() / expected } else { 1.0 };
    predicted.mul_f64(slower.max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_counts_where_it_is_longer_and_somebody_was_kept_out() {
        let seconds = Duration::from_secs;
        let measured = |predicted, file, took| measured(predicted, file, took).as_secs();
        assert_eq!(measured(seconds(63), 0, seconds(63)), 63);
        assert_eq!(measured(seconds(63), 0, seconds(126)), 126, "twice as slow");
        assert_eq!(measured(seconds(63), 0, seconds(1)), 63, "most had left");
        assert_eq!(measured(seconds(0), 10 << 20, seconds(60)), 0, "nobody was there");
        // Two seconds of it are for the file.
        assert_eq!(measured(seconds(10), 10 << 20, seconds(12)), 10);
        assert_eq!(measured(seconds(10), 10 << 20, seconds(24)), 20);
    }
}
