//! What nodes tell each other about ranges, outside sessions: a call carries the words for one node, and its reply what is to be said
//! at once. A word that is lost is said again, as long as it matters.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use keydb_core::{NodeId, RangeId, moving::Word};
use keydb_proto::shard::{
    MoveWord, RangeWord, TellRequest, move_service_client::MoveServiceClient,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::debug;

use crate::{disk::failpoint, node::Node};

/// How long telling may take, connecting included.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the same node is told at most.
const TELL_INTERVAL: Duration = Duration::from_millis(100);

/// The words on their way.
#[derive(Debug, Default)]
pub(super) struct Words {
    tasks: JoinSet<NodeId>,
    busy: HashSet<NodeId>,
    told: HashMap<NodeId, Instant>,
}

impl Words {
    /// Tells other nodes what the machines want to say.
    pub(super) fn tell(&mut self, node: &Arc<Node>) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(peer) = ended {
                self.busy.remove(&peer);
            }
        }
        let mut words: HashMap<NodeId, Vec<RangeWord>> = HashMap::new();
        for (to, word) in node.moves.look(|range, machine| {
            let (to, word, lineage, generation) = machine.wants_word()?;
            Some((to, encode(range, word, lineage, generation)))
        }) {
            words.entry(to).or_default().push(word);
        }
        for (peer, words) in words {
            let told = self.told.get(&peer);
            let is_early = told.is_some_and(|at| at.elapsed() < TELL_INTERVAL);
            if is_early || self.busy.contains(&peer) {
                continue;
            }
            self.told.insert(peer, Instant::now());
            self.busy.insert(peer);
            let node = Arc::clone(node);
            self.tasks.spawn(async move {
                match timeout(TELL_TIMEOUT, say(&node, peer, words)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%peer, "not told: {error}"),
                    Err(_) => debug!(%peer, "not told in time"),
                }
                peer
            });
        }
    }
}

async fn say(
    node: &Node,
    peer: NodeId,
    words: Vec<RangeWord>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let membership_state = node.membership.state();
    let map = membership_state.map().ok_or("there is no map")?;
    let address = &map.node(peer).ok_or("it is not a member")?.address;
    let request = TellRequest {
        cluster_id: map.cluster_id.to_bytes().to_vec().into(),
        node_id: node.config.id.0,
        target_node: peer.0,
        words,
    };
    let outgoing = &node.config.outgoing;
    let channel = outgoing.connect(&outgoing.endpoint(address)?).await?;
    let reply = MoveServiceClient::new(channel).tell(request).await?;
    for word in reply.into_inner().words {
        take_in(node, peer, &word);
    }
    Ok(())
}

/// Takes in what `peer` says. Returns what it is to be told at once.
pub(super) fn take_in(node: &Node, peer: NodeId, said: &RangeWord) -> Option<RangeWord> {
    let word = match said.word() {
        MoveWord::Unspecified => return None,
        MoveWord::Ask => Word::Ask,
        MoveWord::Refused => Word::Refused,
        MoveWord::Lost => Word::Lost,
        MoveWord::Dropped => Word::Dropped,
        MoveWord::Begun => Word::Begun,
        MoveWord::Voided => Word::Voided,
        MoveWord::New => Word::New,
    };
    let range = RangeId(said.range_id);
    if word == Word::Begun {
        failpoint::step("move.forget", &node.config.data_dir);
    }
    let reply = node
        .moves
        .told(peer, range, word, said.lineage, said.generation);
    if word == Word::Begun {
        failpoint::step("move.forgotten", &node.config.data_dir);
    }
    let reply = reply?;
    Some(encode(range, reply, said.lineage, said.generation))
}

fn encode(range: RangeId, word: Word, lineage: u64, generation: u64) -> RangeWord {
    let word = match word {
        Word::Ask => MoveWord::Ask,
        Word::Refused => MoveWord::Refused,
        Word::Lost => MoveWord::Lost,
        Word::Dropped => MoveWord::Dropped,
        Word::Begun => MoveWord::Begun,
        Word::Voided => MoveWord::Voided,
        Word::New => MoveWord::New,
    };
    RangeWord {
        range_id: range.0,
        word: word.into(),
        lineage,
        generation,
    }
}
