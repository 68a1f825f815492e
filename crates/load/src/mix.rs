//! What is asked for: of a hundred requests eighty are lists, fifteen look at one thing, five change something; eighty show a
//! token, twenty are signed.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::hmac;
use signature::{ALGORITHM, Signed, canonical_request, hex, sha256, string_to_sign};

use crate::{Kind, Plan, Tenant};

/// One request of somebody's.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// What is asked for.
    pub kind: Kind,
    /// Whose it is: its place among the tenants.
    pub tenant: usize,
    /// By a signature and not by a token.
    pub is_signed: bool,
    /// Decides the rest: the page, the record, what is written.
    pub number: u64,
}

/// Draws one request after the other.
pub struct Mix<'p> {
    plan: &'p Plan,
    state: u64,
    drawn: u64,
    updated: usize,
    /// Tenants whose idle instance has not been backed up yet.
    idle: Vec<usize>,
    /// A backup is submitted each so many writes, so that all are by three quarters of the time.
    submit_every: u64,
    written: u64,
}

impl<'p> Mix<'p> {
    /// Of this plan.
    pub fn of(plan: &'p Plan) -> Self {
        let idle: Vec<usize> = (0..plan.tenants.len())
            .filter(|at| plan.tenants[*at].idle.is_some())
            .collect();
        let writes = (plan.rate * plan.seconds * 0.05 * 0.75) as u64;
        Self {
            plan,
            state: plan.seed,
            drawn: 0,
            updated: 0,
            submit_every: (writes / idle.len().max(1) as u64).max(1),
            idle,
            written: 0,
        }
    }

    /// `splitmix64`: a few instructions, and as even as this needs.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next request.
    pub fn draw(&mut self) -> Wish {
        self.drawn += 1;
        let number = self.random();
        let (kind, credential, tenant) = (self.random() % 100, self.random() % 100, self.random());
        let mut tenant = (tenant % self.plan.tenants.len() as u64) as usize;
        let kind = match kind {
            0..80 => [Kind::ListRestores, Kind::ListBackups, Kind::ListInstances][(number % 3) as usize],
            80..95 => [Kind::ShowInstance, Kind::ShowBackup, Kind::ShowRestore][(number % 3) as usize],
            _ if !self.plan.writes => Kind::ListRestores,
            _ => {
                self.written += 1;
                match self.idle.is_empty() || !self.written.is_multiple_of(self.submit_every) {
                    true => {
                        // In turn: two changes of one instance are far apart, so it is known which is the later one.
                        self.updated = (self.updated + 1) % self.plan.tenants.len();
                        tenant = self.updated;
                        [Kind::UpdateInstance, Kind::UpdateSchedule][(self.written % 2) as usize]
                    }
                    false => {
                        tenant = self.idle.pop().unwrap_or(0);
                        Kind::SubmitBackup
                    }
                }
            }
        };
        Wish {
            kind,
            tenant,
            is_signed: credential < 20,
            number: if kind.is_write() { self.written } else { number },
        }
    }
}

/// The id of a seeded record: see [`Tenant::records`].
fn record_id(tenant: usize, number: u64, kind: u8) -> String {
    let scrambled = (tenant as u64 * 65536 + number).wrapping_mul(2_654_435_761) % (1 << 32);
    format!("{scrambled:08x}-0000-4000-8000-{kind:012x}")
}

/// Makes requests as bytes. The date of signatures is made once a second.
#[derive(Default)]
pub struct Writer {
    second: u64,
    date: String,
}

impl Writer {
    /// The bytes of the request.
    pub fn bytes(&mut self, plan: &Plan, wish: Wish) -> Vec<u8> {
        let tenant = &plan.tenants[wish.tenant];
        let (project, instance) = (&tenant.project, &tenant.instance);
        let records = u64::from(tenant.records.max(1));
        let record = |kind| record_id(wish.tenant, 1 + (wish.number >> 8) % records, kind);
        // Every other list is asked for from its beginning, as most people do; the others from anywhere.
        let offset = match wish.number & 64 {
            0 => 0,
            _ => (wish.number >> 8) % records,
        };
        let (method, path, query, body) = match wish.kind {
            Kind::ListRestores => (
                "GET",
                format!("/v2/{project}/instances/{instance}/restores"),
                format!("limit=10&offset={offset}"),
                String::new(),
            ),
            Kind::ListBackups => (
                "GET",
                format!("/v2/{project}/instances/{instance}/backups"),
                format!("limit=10&offset={offset}"),
                String::new(),
            ),
            Kind::ListInstances => (
                "GET",
                format!("/v2/{project}/instances"),
                "limit=10&offset=0".to_owned(),
                String::new(),
            ),
            Kind::ShowInstance => (
                "GET",
                format!("/v2/{project}/instances/{instance}"),
                String::new(),
                String::new(),
            ),
            Kind::ShowBackup => (
                "GET",
                format!("/ck/v1/{project}/instances/{instance}/backups/{}", record(1)),
                String::new(),
                String::new(),
            ),
            Kind::ShowRestore => (
                "GET",
                format!("/ck/v1/{project}/instances/{instance}/restores/{}", record(2)),
                String::new(),
                String::new(),
            ),
            Kind::UpdateInstance => (
                "PUT",
                format!("/v2/{project}/instances/{instance}"),
                String::new(),
                format!("{{\"description\":\"{}\"}}", value(wish)),
            ),
            Kind::UpdateSchedule => (
                "PUT",
                format!("/v2/{project}/instances/{instance}"),
                String::new(),
                policy(wish),
            ),
            Kind::SubmitBackup => (
                "POST",
                format!(
                    "/v2/{project}/instances/{}/backups",
                    tenant.idle.as_deref().unwrap_or_default()
                ),
                String::new(),
                format!("{{\"remark\":\"{}\"}}", value(wish)),
            ),
        };
        let mut text = format!("{method} {path}");
        if !query.is_empty() {
            let _a_string_takes_all = write!(text, "?{query}");
        }
        let _a_string_takes_all = write!(text, " HTTP/1.1\r\nHost: {}\r\n", plan.address);
        match wish.is_signed {
            true => self.sign(&mut text, tenant, (method, &path, &query), &body),
            false => {
                let _a_string_takes_all = write!(text, "X-Auth-Token: {}\r\n", tenant.token);
            }
        }
        if method != "GET" {
            let _a_string_takes_all = write!(
                text,
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        text.push_str("\r\n");
        text.push_str(&body);
        text.into_bytes()
    }

    fn sign(&mut self, text: &mut String, tenant: &Tenant, request: (&str, &str, &str), body: &str) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        if now != self.second {
            self.second = now;
            self.date = date(now);
        }
        let payload_hash = hex(&sha256(body.as_bytes()));
        let (method, path, query) = request;
        let signed = Signed {
            method,
            path,
            query,
            headers: vec![("x-sdk-date", self.date.clone())],
            payload_hash: &payload_hash,
        };
        let to_sign = string_to_sign(&self.date, &canonical_request(&signed));
        let key = hmac::Key::new(hmac::HMAC_SHA256, tenant.sk.as_bytes());
        let signature = hex(hmac::sign(&key, to_sign.as_bytes()).as_ref());
        let _a_string_takes_all = write!(
            text,
            "X-Sdk-Date: {}\r\nAuthorization: {ALGORITHM} Access={}, SignedHeaders=x-sdk-date, Signature={signature}\r\n",
            self.date, tenant.ak
        );
    }
}

/// What a write leaves behind: a description, a number of days and an hour, a remark.
pub fn value(wish: Wish) -> String {
    match wish.kind {
        Kind::UpdateSchedule => format!("{} {:02}", 1 + wish.number % 7, wish.number / 7 % 23),
        _ => format!("written-{}", wish.number),
    }
}

/// Due in half a week, so that nothing begins by it.
fn policy(wish: Wish) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    // 1970-01-01 was a Thursday, which is 4.
    let day = (now / 86_400 + 3 + 3) % 7 + 1;
    let (days, hour) = (1 + wish.number % 7, wish.number / 7 % 23);
    format!(
        "{{\"instance_backup_policy\":{{\"backup_type\":\"auto\",\"save_days\":{days},\"periodical_backup_plan\":\
         {{\"period_type\":\"weekly\",\"backup_at\":[{day}],\"begin_at\":\"{hour:02}:00-{:02}:00\"}}}}}}",
        hour + 1
    )
}

/// `yyyyMMddTHHmmssZ` of Unix seconds. Days to dates as in Hinnant's `civil_from_days`.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(writes: bool) -> Plan {
        let tenant = |number: usize| Tenant {
            project: format!("p{number}"),
            token: "t".to_owned(),
            ak: "a".to_owned(),
            sk: "s".to_owned(),
            instance: "i".to_owned(),
            records: 1000,
            idle: (number < 100).then(|| "idle".to_owned()),
        };
        Plan {
            address: "127.0.0.1:1".to_owned(),
            rate: 2000.0,
            connections: 1,
            seconds: 60.0,
            seed: 1,
            writes,
            from_sent: false,
            tenants: (0..1000).map(tenant).collect(),
            slow: 0,
            patience_seconds: 1.0,
        }
    }

    #[test]
    fn dates_are_written_as_signatures_want_them() {
        assert_eq!(date(0), "19700101T000000Z");
        assert_eq!(date(1_709_210_096), "20240229T123456Z");
        assert_eq!(date(1_735_689_599), "20241231T235959Z");
    }

    #[test]
    fn the_mix_has_the_shares_that_it_claims_and_backs_each_idle_instance_up_once() {
        let plan = plan(true);
        let mut mix = Mix::of(&plan);
        let drawn: Vec<Wish> = (0..120_000).map(|_| mix.draw()).collect();
        let share = |wanted: &dyn Fn(&Wish) -> bool| {
            drawn.iter().filter(|wish| wanted(wish)).count() as f64 / drawn.len() as f64
        };
        let lists = |wish: &Wish| {
            matches!(
                wish.kind,
                Kind::ListRestores | Kind::ListBackups | Kind::ListInstances
            )
        };
        assert!((share(&lists) - 0.80).abs() < 0.01);
        assert!((share(&|wish| wish.kind.is_write()) - 0.05).abs() < 0.01);
        assert!((share(&|wish| wish.is_signed) - 0.20).abs() < 0.01);
        let mut backed_up: Vec<usize> = drawn
            .iter()
            .filter(|wish| wish.kind == Kind::SubmitBackup)
            .map(|wish| wish.tenant)
            .collect();
        backed_up.sort_unstable();
        assert_eq!(backed_up, (0..100).collect::<Vec<_>>());
        let is_write = |wish: Wish| wish.kind.is_write();
        let other = self::plan(false);
        let mut mix = Mix::of(&other);
        assert!(!(0..10_000).any(|_| is_write(mix.draw())));
    }
}
