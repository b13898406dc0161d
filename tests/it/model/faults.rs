//! What goes wrong, and how it is made good again.
//!
//! Invariant: what goes wrong uses up one of the faults that a history may have, what makes it good
//! again does not; so a history can always come to rest. A turn that met with a fault may have lost
//! its place by it, and is not asked about the order any more.

use super::steps::Step;
use super::world::{Answer, Flaw, Mail, Phase, Process, Scenario, Wire, World};

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
            Step::LoseAnswer(number) => match self.turns[number].wire {
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
                self.turns[turn].wire = Wire::Answer(Answer::Late);
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
                turn.forsake();
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
            // The clock goes on from here; what it had reached is ahead of it.
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

    /// The instance is back, and makes nothing of what it claimed before: another instance may have
    /// found it gone, and take such a claim's lock away at any time.
    fn restore_key(&mut self, scenario: &Scenario, number: usize) {
        for turn in self.turns_of(scenario, number) {
            let turn = &mut self.turns[turn];
            match turn.phase {
                Phase::Asking | Phase::Waiting if scenario.has(Flaw::OldClaimsGoOn) => {}
                Phase::Asking | Phase::Waiting | Phase::AtBackend => {
                    turn.forsake();
                }
                _ => {}
            }
        }
        self.instances[number].key = true;
        self.instances[number].lapsed = false;
    }
}
