//! Stops a node at each step of a move, has something fail at that very step, and checks that the cluster gets where it is to be, and
//! that what clients were told stays true.
//!
//! The steps are fail points of the node that takes them. By default something fails once at each. All faults at all
//! steps: `FAULTS=all cargo test -p keydb-cli --test failpoints -- --nocapture`; `FAULTS=move.seal,memory` has those with
//! one of these in their names.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

#[path = "torture/history.rs"]
mod history;
#[path = "torture/load.rs"]
mod load;
#[path = "scaling/relay.rs"]
mod relay;
mod support;
#[path = "scaling/world.rs"]
mod world;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Stdio,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use history::violations;
use keydb_client::{Claim, Client, Operation};
use keydb_storage::testing::TestBucket;
use load::{Choices, History, ask_for_all, work};
use relay::Link;
use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};
use world::{Members, PATIENCE, World};

/// The nodes by what they are to the ranges that move.
const OWNER: usize = 0;
const SUCCESSOR: usize = 1;
const KEYS: usize = 20_000;
/// So many cases run at the same time.
const CASES_MAX: usize = 8;
/// Between two calls of the same client: several clusters share the machine.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a node stays down, and what is cut stays cut.
const OUTAGE: Duration = Duration::from_secs(2);
/// Longer than a session lives without a sign of life.
const LONG: Duration = Duration::from_secs(12);

/// What leads to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// The owner alone is scaled to both nodes.
    Join,
    /// The successor takes the owner's place.
    Replace,
    /// The successor cannot pull a copy.
    Straight,
    /// The successor dies when it has published, and the owner takes back.
    TakeBack,
}

use Course::{Join, Replace, Straight, TakeBack};

/// A fail point, who stops there, on which course, and what fails there by default.
type Step = (&'static str, usize, Course, Fault);

const STEPS: [Step; 37] = [
    // 1. Plan.
    ("scale.plan", OWNER, Join, Operator),
    ("scale.planned", OWNER, Join, Kill(OWNER)),
    ("scale.register", SUCCESSOR, Join, Storage),
    ("scale.registered", SUCCESSOR, Join, Kill(SUCCESSOR)),
    ("scale.complete", OWNER, Join, Cut),
    ("scale.completed", OWNER, Join, Operator),
    // 2. Tap.
    ("move.tap", OWNER, Join, Kill(SUCCESSOR)),
    ("move.tapped", OWNER, Join, Cut),
    // 3. Copy.
    ("move.upload", OWNER, Join, Storage),
    ("move.uploaded", OWNER, Join, Kill(OWNER)),
    ("move.pull", SUCCESSOR, Join, Storage),
    ("move.pulled", SUCCESSOR, Join, Kill(SUCCESSOR)),
    ("move.straight", OWNER, Straight, Cut),
    ("move.straight_sent", OWNER, Straight, Kill(SUCCESSOR)),
    // 4. Apply.
    ("move.apply", SUCCESSOR, Join, Kill(OWNER)),
    ("move.applied", SUCCESSOR, Join, Cut),
    // 5. Secured.
    ("move.secured", SUCCESSOR, Join, Operator),
    // 6. Publish.
    ("move.publish", SUCCESSOR, Join, Freeze),
    ("move.published", SUCCESSOR, Join, Storage),
    // 7. Seal and begin.
    ("move.seal", OWNER, Join, Kill(SUCCESSOR)),
    ("move.sealed", OWNER, Join, Kill(OWNER)),
    ("move.drained", OWNER, Join, Cut),
    ("move.begin_sent", OWNER, Join, Kill(OWNER)),
    ("move.begin", SUCCESSOR, Join, Freeze),
    ("move.begun", SUCCESSOR, Join, Kill(SUCCESSOR)),
    ("move.refuse", OWNER, TakeBack, Storage),
    ("move.refused", OWNER, TakeBack, Kill(OWNER)),
    ("move.void", SUCCESSOR, TakeBack, Operator),
    ("move.voided", SUCCESSOR, TakeBack, Kill(SUCCESSOR)),
    ("move.take_back", OWNER, TakeBack, Storage),
    ("move.taken_back", OWNER, TakeBack, Cut),
    // 8. Forget.
    ("move.forget", OWNER, Join, Cut),
    ("move.forgotten", OWNER, Join, Kill(SUCCESSOR)),
    ("move.clear", SUCCESSOR, Join, Restart(OWNER)),
    ("move.cleared", SUCCESSOR, Join, Kill(SUCCESSOR)),
    ("scale.end", SUCCESSOR, Replace, Operator),
    ("scale.ended", SUCCESSOR, Replace, Kill(OWNER)),
];

/// What fails while a node is stopped at a step. Unless it is killed itself, it goes on then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A node is killed, and comes back after a while.
    Kill(usize),
    /// It is back before the one that is stopped goes on.
    Restart(usize),
    /// Both are killed.
    Both,
    /// `keydb scale` is killed.
    Operator,
    /// Object storage is away for a while.
    Storage,
    /// The nodes do not reach each other for a while; clients reach both.
    Cut,
    /// Nothing but that the node does not go on for long.
    Freeze,
    /// A node is killed and comes back with an empty disk.
    Disk(usize),
}

use Fault::{Both, Cut, Disk, Freeze, Kill, Operator, Restart, Storage};

/// Those that are possible at every step.
const FAULTS: [Fault; 6] = [Kill(OWNER), Kill(SUCCESSOR), Operator, Storage, Cut, Freeze];

/// Where a lost disk is more than a killed node.
const DISK_STEPS: [&str; 7] = [
    "move.uploaded",
    "move.secured",
    "move.published",
    "move.sealed",
    "move.begin_sent",
    "move.begun",
    "move.forgotten",
];

#[derive(Debug, Clone, Copy)]
struct Case {
    durability: &'static str,
    step: Step,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.durability, self.step.0, self.fault)
    }
}

/// Every fault at every step.
fn all_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for step in STEPS {
        let (name, node, course, _) = step;
        let mut faults = FAULTS.to_vec();
        faults.extend([Restart(1 - node), Both]);
        if DISK_STEPS.contains(&name) {
            faults.extend([Disk(OWNER), Disk(SUCCESSOR)]);
        }
        let case = |durability| {
            move |fault| Case {
                durability,
                step,
                fault,
            }
        };
        cases.extend(faults.into_iter().map(case("journal")));
        // A node that dies in `memory` mode takes its keys along, and there is nothing that could be pulled.
        let needs_disk = ["move.upload", "move.uploaded", "move.pull", "move.pulled"];
        if course != TakeBack && !needs_disk.contains(&name) {
            cases.extend(FAULTS[2..].iter().copied().map(case("memory")));
        }
    }
    cases
}

/// Every step once.
fn some_cases() -> Vec<Case> {
    let durability = "journal";
    let case = |step: Step| Case {
        durability,
        step,
        fault: step.3,
    };
    STEPS.into_iter().map(case).collect()
}

#[test]
fn whatever_fails_at_whichever_step_of_a_move_it_ends_well_and_nothing_that_was_told_becomes_untrue()
 {
    let cases = match std::env::var("FAULTS") {
        Ok(all) if all == "all" => all_cases(),
        Ok(texts) => {
            let is_meant = |case: &Case| {
                let name = case.to_string();
                texts.split(',').any(|text| name.contains(text))
            };
            all_cases().into_iter().filter(is_meant).collect()
        }
        Err(_) => some_cases(),
    };
    assert!(!cases.is_empty());
    let count = cases.len();
    let waiting = Mutex::new(cases.into_iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..CASES_MAX {
            scope.spawn(|| {
                loop {
                    let Some(case) = waiting.lock().unwrap().next() else {
                        return;
                    };
                    let begun = Instant::now();
                    let ended = catch_unwind(AssertUnwindSafe(|| {
                        let runtime = tokio::runtime::Builder::new_multi_thread()
                            .worker_threads(2)
                            .enable_all()
                            .build();
                        runtime.unwrap().block_on(run(case));
                    }));
                    let how = if ended.is_ok() { "ok" } else { "FAILED" };
                    println!("{case}: {how} ({:.1} s)", begun.elapsed().as_secs_f64());
                    if ended.is_err() {
                        failed.lock().unwrap().push(case.to_string());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("{count} cases, {} failed", failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

async fn run(case: Case) {
    let (name, node, course, _) = case.step;
    let mut failpoints = Vec::new();
    match course {
        Join | Replace => {}
        Straight => failpoints.push((SUCCESSOR, "move.pull=stop".to_owned())),
        TakeBack => failpoints.push((SUCCESSOR, "move.published=stop".to_owned())),
    }
    failpoints.push((node, format!("{name}=stop")));
    if case.durability == "memory" {
        failpoints.retain(|(_, points)| points != "move.pull=stop");
    }
    let bucket = TestBucket::in_process().await;
    let world = World::start_with(case.durability, 2, 1, bucket, &failpoints).await;
    let supervisor = tokio::spawn(Arc::clone(&world).supervise());
    let client = world.client(PATIENCE).await;
    let names = || (0..KEYS).map(|key| format!("kept {key}"));
    client.put(names(), "1d".parse().unwrap()).await.unwrap();
    if matches!(case.fault, Disk(_)) {
        support::assert_code(&world.command(&["snapshot", "create"]).output().unwrap(), 0);
    }
    let mut load = Load::start(&world).await;

    let members: Members = match course {
        Replace => &[SUCCESSOR],
        _ => &[OWNER, SUCCESSOR],
    };
    let to = world.addresses(members.iter().copied()).join(",");
    let command = world.command(&["scale", "--to", &to, "--yes"]);
    let mut operator = tokio::process::Command::from(command)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    if case.durability != "memory" {
        lead(&world, case.step).await;
    }
    reach(&world, node, name).await;
    fail(&world, case, &mut operator).await;

    // By itself, or by one more call.
    if case.fault != Operator {
        let ended = tokio::time::timeout(PATIENCE, operator.wait()).await;
        ended
            .unwrap_or_else(|_| panic!("{case}: the operator waits\n{}", world.tails()))
            .unwrap();
    }
    world.scale_to(members).await;
    load.stop().await;
    if case.durability == "journal" {
        for node in [OWNER, SUCCESSOR] {
            world.signal(node, Signal::KILL);
        }
    }
    let client = world.client(PATIENCE).await;
    let present = client.get(names()).await.unwrap();
    let absent = present.iter().filter(|present| !**present).count();
    assert_eq!(absent, 0, "{case}\n{}", world.tails());
    if !matches!(case.fault, Disk(_)) {
        let broken = load.check(&client).await;
        assert!(
            broken.is_empty(),
            "{case}\n{}\n{}",
            broken.join("\n"),
            world.tails()
        );
    }
    assert_eq!(*world.broken.lock().unwrap(), [""; 0], "{case}");
    world.ends.store(true, Ordering::SeqCst);
    supervisor.await.unwrap();
}

/// Waits until a node has stopped at a step.
async fn reach(world: &World, node: usize, step: &str) {
    let begun = Instant::now();
    while !world.is_stopped(node) {
        assert!(
            begun.elapsed() < PATIENCE,
            "{step} was not reached\n{}",
            world.tails()
        );
        sleep(Duration::from_millis(10)).await;
    }
}

/// Leaves the common way where a step does not lie on it.
async fn lead(world: &World, (name, node, course, _): Step) {
    match course {
        Join | Replace => {}
        Straight => {
            reach(world, SUCCESSOR, "move.pull").await;
            world.storage.be(Link::Cut);
            world.signal(SUCCESSOR, Signal::CONT);
            reach(world, node, "move.straight").await;
            world.storage.be(Link::Open);
        }
        TakeBack => {
            reach(world, SUCCESSOR, "move.published").await;
            // What the successor does after its start must not be too late.
            let is_held = node == SUCCESSOR;
            if is_held {
                world.signal(OWNER, Signal::STOP);
            }
            world.signal(SUCCESSOR, Signal::KILL);
            if is_held {
                while world.is_stopped(SUCCESSOR) {
                    sleep(Duration::from_millis(10)).await;
                }
                reach(world, SUCCESSOR, name).await;
                world.signal(OWNER, Signal::CONT);
            }
        }
    }
}

/// Has the fault happen while a node is stopped, which goes on then.
async fn fail(world: &World, case: Case, operator: &mut tokio::process::Child) {
    let stopped = case.step.1;
    let go_on = || world.signal(stopped, Signal::CONT);
    match case.fault {
        Kill(node) => {
            down(world, node);
            go_on();
            sleep(OUTAGE).await;
            up(world, node);
        }
        Restart(node) => {
            world.signal(node, Signal::KILL);
            sleep(OUTAGE).await;
            go_on();
        }
        Both => {
            world.signal(OWNER, Signal::KILL);
            world.signal(SUCCESSOR, Signal::KILL);
        }
        Operator => {
            operator.kill().await.unwrap();
            go_on();
        }
        Storage => {
            world.storage.be(Link::Cut);
            go_on();
            sleep(OUTAGE).await;
            world.storage.be(Link::Open);
        }
        Cut => {
            let be = |link| world.nodes.iter().for_each(|node| node.relay.be(link));
            be(Link::CutFromOthers);
            go_on();
            sleep(OUTAGE).await;
            be(Link::Open);
        }
        Freeze => {
            sleep(LONG).await;
            go_on();
        }
        Disk(node) => {
            down(world, node);
            go_on();
            sleep(Duration::from_millis(300)).await;
            std::fs::remove_dir_all(&world.nodes[node].dir).unwrap();
            let id = node.to_string();
            let mut recover = world.command(&["recover", "--node", &id, "--accept-loss"]);
            support::assert_code(&recover.output().unwrap(), 0);
            up(world, node);
        }
    }
}

fn down(world: &World, node: usize) {
    world.nodes[node].stays_down.store(true, Ordering::SeqCst);
    world.signal(node, Signal::KILL);
}

fn up(world: &World, node: usize) {
    world.nodes[node].stays_down.store(false, Ordering::SeqCst);
}

/// A claim of keys that nobody else uses.
struct Claimed {
    operation: Operation,
    keys: Vec<String>,
    /// Nothing where the call failed.
    told: Option<Vec<Claim>>,
}

/// What clients do meanwhile.
struct Load {
    history: Arc<History>,
    workers: JoinSet<()>,
    claiming: JoinSet<Vec<Claimed>>,
    claimed: Vec<Claimed>,
}

impl Load {
    async fn start(world: &World) -> Self {
        let history = Arc::new(History::default());
        let (mut workers, mut claiming) = (JoinSet::new(), JoinSet::new());
        // Some give up early, so that there are calls whose outcome nobody knows.
        for (number, patience) in [PATIENCE, Duration::from_millis(500)]
            .into_iter()
            .enumerate()
        {
            let number = number as u64;
            let choices = Choices::of(load::seed(), number);
            let client = world.client(patience).await;
            workers.spawn(work(client.clone(), Arc::clone(&history), choices, PAUSE));
            for part in 0..2 {
                let name = format!("claimed {number} {part}");
                claiming.spawn(claim(client.clone(), Arc::clone(&history), name));
            }
        }
        Self {
            history,
            workers,
            claiming,
            claimed: Vec::new(),
        }
    }

    async fn stop(&mut self) {
        self.history.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        while let Some(claimed) = self.claiming.join_next().await {
            self.claimed.extend(claimed.unwrap());
        }
    }

    /// Returns what cannot be true.
    async fn check(&self, client: &Client) -> Vec<String> {
        let ttl = "1d".parse().unwrap();
        ask_for_all(client, &self.history).await;
        let mut broken = violations(&self.history.events());
        for Claimed {
            operation,
            keys,
            told,
        } in &self.claimed
        {
            // Nobody else has claimed these keys, so whoever has is told `First`, and so is every repeat.
            let again = client.claim_as(operation.again(), keys, ttl).await.unwrap();
            let others = client.claim(keys, ttl).await.unwrap();
            let is_right = told
                .iter()
                .chain([&again])
                .flatten()
                .all(|it| *it == Claim::First)
                && others.iter().all(|it| *it == Claim::Duplicate);
            if !is_right {
                broken.push(format!(
                    "{keys:?}: told {told:?}, again {again:?}, others {others:?}"
                ));
            }
        }
        broken
    }
}

/// Claims new keys, one call after the other.
async fn claim(client: Client, history: Arc<History>, name: String) -> Vec<Claimed> {
    let ttl = "1d".parse().unwrap();
    let mut claimed = Vec::new();
    while !history.stop.load(Ordering::SeqCst) {
        sleep(PAUSE).await;
        let call = claimed.len();
        let keys = (0..16).map(|key| format!("{name} {call} {key}"));
        let (operation, keys) = (Operation::new(), keys.collect::<Vec<_>>());
        let told = client.claim_as(operation, &keys, ttl).await.ok();
        claimed.push(Claimed {
            operation,
            keys,
            told,
        });
    }
    claimed
}
