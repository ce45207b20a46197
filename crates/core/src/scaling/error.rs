use crate::{NodeId, OperationId};

/// Why a scaling operation was refused. Nothing is to be changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    /// The list of members is empty.
    #[error("the list of nodes is empty; a cluster needs at least one")]
    NoMembers,
    /// Two addresses of the list lead to the same node, or two nodes have the same number.
    #[error(
        "{first:?} and {second:?} both answered as node {id}; list each node once, by one address, and give each its own id"
    )]
    SameId {
        /// The number.
        id: NodeId,
        /// The address that comes first in the list.
        first: String,
        /// The other one.
        second: String,
    },
    /// The list has an address twice.
    #[error("{address:?} is listed twice, for nodes {first} and {second}; list each address once")]
    SameAddress {
        /// The address.
        address: String,
        /// The node that comes first in the list.
        first: NodeId,
        /// The other one.
        second: NodeId,
    },
    /// At a member's address another node answers.
    #[error(
        "{address:?} answered as node {answered}, but the cluster map has node {member} at this address; \
         start node {member} there, or list an address of its own for node {answered}"
    )]
    OtherId {
        /// The address.
        address: String,
        /// Who answered.
        answered: NodeId,
        /// The member that the map has there.
        member: NodeId,
    },
    /// A member answers at another address than the map has for it.
    #[error(
        "{answered:?} answered as node {id}, which the cluster map has at {member:?}; \
         list {member:?}, or give the node at {answered:?} an id of its own (scaling changes no addresses)"
    )]
    OtherAddress {
        /// The member.
        id: NodeId,
        /// The listed address.
        answered: String,
        /// The address that the map has.
        member: String,
    },
    /// Another operation is under way.
    #[error(
        "scaling operation {operation} to {addresses:?} is under way; complete it or abort it before another one starts"
    )]
    UnderWay {
        /// The one that is.
        operation: OperationId,
        /// Where it is going.
        addresses: Vec<String>,
    },
    /// There is no operation to go on with.
    #[error("no scaling operation is under way; start one first")]
    NotUnderWay,
    /// Another operation is under way than the one that is to go on.
    #[error(
        "scaling operation {asked} is not the one under way, which is {under_way}; it has ended, or was never started"
    )]
    OtherOperation {
        /// The one that was asked for.
        asked: OperationId,
        /// The one that is.
        under_way: OperationId,
    },
}
