// The column of receipts: one entry per vote of this page, moved on as the server says how far the vote has come.

import { receipt as fetchReceipt, withdraw } from "/page/api.js";
import { button, make } from "/page/dom.js";

const KEPT = "attune-receipts";
const MAX_KEPT = 100;

const FINAL = new Set(["withdrawn", "unusable", "unknown"]);
const SETTLED = new Set(["live", "rolled_back"]); // until another policy goes live
const seconds = (from, to) => `${Math.max(0, to - from).toFixed(to - from < 10 ? 1 : 0)} s`;

function sentence(state, stopped, reward) {
  const { status, received_at: from } = state;
  if (status === "withdrawn") return "Taken back. The next versions will not learn from it.";
  if (status === "rolled_back") return `Policy ${state.policy_version} learned it and was rolled back.`;
  if (status === "unknown") return "This server does not know the vote: it has another store than when you voted.";
  if (status === "unusable") return `Stored, but nothing is learned from it: ${state.reason}.`;
  if (status === "live") return `Live in policy ${state.policy_version}, ${seconds(from, state.live_since)} after your vote.`;
  if (state.policy_version != null) return `In policy ${state.policy_version}, which is not live yet.`;
  if (state.reward_version != null) {
    const chooses = reward >= state.reward_version ? "chooses by it already" : "has learned it";
    return `Reward model ${state.reward_version} ${chooses}; the policy trains on it ${stopped ? "once learning goes on" : "next"}.`;
  }
  if (state.stored_at != null) return `Stored after ${seconds(from, state.stored_at)}; the reward model learns it next.`;
  return "Safe on disk, on its way to the store.";
}

function steps(state) {
  return [
    ["received", true],
    ["stored", state.stored_at != null],
    [state.reward_version != null ? `reward\n${state.reward_version}` : "reward", state.reward_version != null],
    [state.policy_version != null ? `policy\n${state.policy_version}` : "policy", state.policy_version != null],
    ["live", state.status === "live"],
  ];
}

export class Receipts {
  constructor(list, empty) {
    this.list = list;
    this.empty = empty;
    this.entries = new Map();
    this.stopped = false;
    this.reward = 0;
    for (const [id, kind, question] of JSON.parse(sessionStorage.getItem(KEPT) || "[]")) this.add(id, kind, question, true);
  }

  /** Begin (or begin again, for a changed vote) the receipt of a vote that the server has acknowledged. */
  add(id, kind, question, kept = false) {
    const known = this.entries.get(id);
    const item = known ? known.item : make("li", { class: "receipt", "data-receipt": id });
    const state = { status: "received", received_at: Date.now() / 1000 };
    this.entries.delete(id);
    this.entries.set(id, { item, kind, question, state, kept });
    sessionStorage.setItem(KEPT, JSON.stringify([...this.entries].slice(-MAX_KEPT).map(([key, entry]) => [key, entry.kind, entry.question])));
    this.list.prepend(item);
    this.empty.hidden = true;
    this.draw(this.entries.get(id));
  }

  /** Read the receipts that can still move (`swapped`: another policy is live than before); resolves to the entries that became live just now. */
  async refresh(swapped) {
    const moves = ({ status }) => !FINAL.has(status) && (swapped || !SETTLED.has(status));
    const waiting = [...this.entries.entries()].filter(([, entry]) => moves(entry.state)).slice(-40);
    const fresh = [];
    await Promise.all(waiting.map(async ([id, entry]) => {
      const state = await fetchReceipt(id).catch((error) => {
        if (error.status === 404) return { ...entry.state, status: "unknown" };
        throw error;
      });
      if (this.entries.get(id) !== entry) return;
      if (JSON.stringify(state) === JSON.stringify(entry.state)) return;
      if (state.status === "live" && entry.state.status !== "live") fresh.push(entry);
      entry.state = state;
      this.draw(entry);
    }));
    return fresh;
  }

  /** Say what is true while learning has stopped, or goes on, and while this reward model ranks. */
  tell(stopped, reward) {
    if (stopped === this.stopped && reward === this.reward) return;
    Object.assign(this, { stopped, reward });
    this.entries.forEach((entry) => this.draw(entry));
  }

  /** The answers are about to leave the page: from now on receipts offer to take their votes back. */
  keep() {
    for (const entry of this.entries.values()) {
      entry.kept = true;
      this.draw(entry);
    }
  }

  /** Show a vote as taken back, once the server has said so. */
  withdraw(id) {
    const entry = this.entries.get(id);
    if (!entry) return;
    entry.state = { ...entry.state, status: "withdrawn" };
    this.draw(entry);
  }

  /** How many votes of this page are first contained in policies after `before`, up to `version`. */
  learnedBetween(before, version) {
    const live = [...this.entries.values()].filter((entry) => entry.state.status !== "rolled_back");
    const versions = live.map((entry) => entry.state.policy_version);
    return versions.filter((number) => number != null && number > before && number <= version).length;
  }

  /** A vote whose answer has left the page has nowhere else to be taken back: its receipt offers it. */
  async takeBack(entry) {
    const id = entry.item.dataset.receipt;
    try {
      await withdraw(id);
      this.withdraw(id);
    } catch (error) {
      entry.item.append(make("p", { class: "sentence", role: "alert" }, [`It was not taken back: ${error.message}`]));
    }
  }

  draw(entry) {
    const { item, kind, question, state, kept } = entry;
    const what = make("p", { class: "what" }, [make("span", { class: "kind" }, [kind]), ` · ${question}`]);
    const row = make("ol", { class: "steps", "aria-hidden": "true" }, steps(state).map(([name, done]) => make("li", done ? { class: "done" } : {}, [name])));
    item.dataset.status = state.status;
    item.replaceChildren(what, row, make("p", { class: "sentence" }, [sentence(state, this.stopped, this.reward)]));
    if (kept && !["withdrawn", "unknown"].includes(state.status)) item.append(button("Take it back", {}, () => this.takeBack(entry)));
  }
}
