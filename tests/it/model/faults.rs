//! Faults, and how they are repaired.
//!
//! Invariant: each fault counts against the limit of faults in a history, and each repair doesn't;
//! so every history can come to an end. A turn that had a fault may have lost its place, so the
//! order isn't checked for it any more.

use super::steps::Step;
use super::world::{Flaw, Mail, Phase, Process, Reply, Scenario, Wire, World};

impl World {
    pub(super) fn go_wrong(&mut self, scenario: &Scenario, fault: Step) {
        match fault {
            Step::SubscribeAgain(instance) => {
                self.instances[instance].subscribed = true;
                for turn in self.turns_of(scenario, instance) {
                    if self.turns[turn].phase == Phase::Waiting {
                        self.ask(turn);
                    }
                }
                return;
            }
            Step::Resume(instance) => {
                self.instances[instance].process = Process::Running;
                return;
            }
            Step::RestoreKey(instance) => return self.restore_key(scenario, instance),
            _ => self.faults_left -= 1,
        }
        match fault {
            Step::LoseCommand(turn) => self.turns[turn].give_up_command(),
            Step::LoseReply(number) => match self.turns[number].wire {
                Wire::Release => {
                    self.turns[number].disturbed = true;
                    self.release(scenario, number);
                }
                _ => self.turns[number].give_up_command(),
            },
            Step::Delay(turn) => {
                self.turns[turn].stray = Some(self.turns[turn].ticket);
                self.turns[turn].give_up_command();
            }
            Step::ComeLate(turn) => {
                self.turns[turn].disturbed = true;
                self.turns[turn].wire = Wire::Reply(Reply::Late);
            }
            Step::MissOffer => {
                if let Some(lock) = self.store.lock.take() {
                    self.turns[lock.turn].disturbed = true;
                }
            }
            Step::LoseMessage(turn, letter) => {
                *self.turns[turn].mail.slot(letter) = false;
                self.turns[turn].disturbed = true;
            }
            Step::Leave(number) => {
                let turn = &mut self.turns[number];
                turn.abandon();
            }
            Step::Unsubscribe(instance) => {
                self.instances[instance].subscribed = false;
                self.disturb(scenario, instance);
                for turn in self.turns_of(scenario, instance) {
                    self.turns[turn].mail = Mail::default();
                }
            }
            Step::Crash(number) => {
                let instance = &mut self.instances[number];
                instance.process = Process::Crashed;
                (instance.holder, instance.dead) = (None, None);
                for turn in self.turns_of(scenario, number) {
                    self.turns[turn].crash();
                }
            }
            Step::Pause(instance) => {
                self.instances[instance].process = Process::Paused;
                self.disturb(scenario, instance);
            }
            Step::Lapse(instance) => {
                self.instances[instance].lapsed = true;
                self.disturb(scenario, instance);
            }
            // The clock goes on from here, and earlier values are ahead of it.
            Step::SetClockBack => {
                self.store.given += 2;
                self.store.fence = self.store.fence.map(|fence| fence + 2);
            }
            _ => {}
        }
    }

    fn disturb(&mut self, scenario: &Scenario, instance: usize) {
        for turn in self.turns_of(scenario, instance) {
            self.turns[turn].disturbed = true;
        }
    }

    /// The instance is back, and gives up its earlier claims: another instance may have found it
    /// dead, and take over their locks at any time.
    fn restore_key(&mut self, scenario: &Scenario, number: usize) {
        for turn in self.turns_of(scenario, number) {
            let turn = &mut self.turns[turn];
            match turn.phase {
                Phase::Asking | Phase::Waiting if scenario.has(Flaw::OldClaimsGoOn) => {}
                Phase::Asking | Phase::Waiting | Phase::AtBackend => {
                    turn.abandon();
                }
                _ => {}
            }
        }
        self.instances[number].key = true;
        self.instances[number].lapsed = false;
    }
}
