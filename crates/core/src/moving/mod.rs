//! How a hash range moves from one node to another without a moment in which nobody, or both, answer for it.
//!
//! [`RangeMachine`] is the part that one node plays for one range. It does no I/O: it is told what has happened ([`Event`]), and
//! says what it wants done now. Everything it wants is a function of its state, so nothing has to be remembered elsewhere: whoever
//! runs it asks again after each event, and as often as a message may have been lost.
//!
//! A range moves from A, its owner, to B, its successor by the cluster map:
//!
//! 1. B asks A for a copy ([`RangeMachine::wants_copy_from`]). A first installs a tap: every record of the range that is committed
//!    from then on goes to B, in order. Then A makes the copy. Both together are the whole range, named by a [`CopyId`](crate::CopyId).
//! 2. When the copy is on B's disk and B is not far behind ([`Event::Secured`]), B *publishes*: it writes itself into the map as the
//!    owner under the next generation, *from* A by this copy. A still answers.
//! 3. A, which sees that in the map, decides, once and durably: *sealed*, if the copy's tap is open and without a gap, or *refused*. Sealed,
//!    it admits no request for the range any more, lets those inside end, sends what is left and then *begin*.
//! 4. B commits all that came, decides *begun*, durably, and answers for the range. It clears *from*; A drops its keys.
//!
//! A sealed owner does not answer again unless it never sent *begin*, or B says *voided*: that it has not begun and never will under this
//! generation. B says so when it is asked and has no *begin* in hand, or when it has restarted. A that has refused takes the range back
//! in the map, and answers all the while. So each generation that is published has one outcome, which one of the two decides on its own
//! disk, and no clock takes part.
//!
//! Nodes whose disk was lost say so: [`Word::New`], [`Word::Lost`], [`Word::Dropped`].
//!
//! `tests/moving` explores this machine's states exhaustively, with crashes, lost sessions and late writes.

mod assignment;
mod decision;
mod machine;

pub use assignment::{Assignment, Change, Handed};
pub use decision::{Decisions, OwnerDecision, OwnerWord, SuccessorDecision, SuccessorWord};
pub use machine::{Decision, Event, Manifests, RangeMachine, Standing, Start, Word};
