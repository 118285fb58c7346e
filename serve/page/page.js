// The page: one conversation, the keyboard, and a poll that shows what is live and how far this page's votes have come.

import { status } from "/page/api.js";
import { make } from "/page/dom.js";
import { Receipts } from "/page/receipts.js";
import { Turn } from "/page/turn.js";

const POLL_MS = 1200;
const HIDDEN_POLL_MS = 6000;
const DOUBLE_CLICK_MS = 500;
const at = (id) => document.getElementById(id);
const [log, field, two, send, toast, live] = ["log", "question", "two", "send", "toast", "live"].map(at);

const newConversation = () => `page-${Date.now().toString(36)}${Math.random().toString(36).slice(2, 10)}`;
const receipts = new Receipts(at("receipts"), at("no-receipts"));
const room = { receipts, say, again: (turn) => ask(turn.question), conversation: newConversation() };
let turns = [];
let running = null;
let livePolicy = null;
let newestPolicy = null; // the highest seen: while the engine is brought back, the base model answers for it

function say(text) {
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("shown"), 4000);
}

/** Add to the conversation, and follow it down only if the reader was at its end already. */
function append(...elements) {
  const last = log.lastElementChild.getBoundingClientRect();
  const following = last.bottom < at("composer").getBoundingClientRect().top + 200;
  log.append(...elements);
  if (following) elements.at(-1).scrollIntoView({ block: "end" });
}

/** What was said last, but nothing from before a question that the server refused: it may have been too much for it. */
function past() {
  const from = turns.findLastIndex((turn) => turn.refused) + 1;
  return turns.slice(from).filter((turn) => turn.told && turn.text).slice(-4)
    .flatMap((turn) => [{ role: "user", content: turn.question }, { role: "assistant", content: turn.text }]);
}

async function ask(question) {
  if (!question.trim()) return;
  if (running) {
    say("One answer at a time: this one is still being written");
    return;
  }
  at("hello").hidden = true;
  running = new Turn(question.trim(), [...past(), { role: "user", content: question.trim() }], two.checked, room);
  turns.push(running);
  append(running.asked, running.article);
  send.textContent = "Stop";
  await running.run();
  if (turns.includes(running)) running.article.scrollIntoView({ block: "nearest" });
  send.textContent = "Send";
  running = null;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) {
    if (performance.now() - running.began > DOUBLE_CLICK_MS) running.stop();
    return;
  }
  const question = field.value;
  field.value = "";
  ask(question);
  field.focus();
});

field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) at("composer").requestSubmit();
  } else if (event.key === "Escape" && running) {
    running.stop();
  } else if (event.key === "ArrowUp" && !field.value && turns.length) {
    event.preventDefault();
    turns.at(-1).article.focus();
  }
});

// Single keys work only while an answer itself has the focus, so that they never surprise somebody who is typing or dictating.
log.addEventListener("keydown", (event) => {
  const index = turns.findIndex((turn) => turn.article === event.target);
  if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key held down is one vote
  const turn = turns[index];
  const actions = {
    "+": () => turn.thumb(turn.chosen, 1),
    "-": () => turn.thumb(turn.chosen, -1),
    1: () => turn.prefer(0),
    2: () => turn.prefer(1),
    ArrowUp: () => turns[Math.max(0, index - 1)].article.focus(),
    ArrowDown: () => (turns[index + 1] ? turns[index + 1].article : field).focus(),
    Escape: () => (turn === running ? turn.stop() : field.focus()),
  };
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

at("fresh").addEventListener("click", () => {
  if (running) running.stop();
  turns = [];
  receipts.keep();
  room.conversation = newConversation();
  log.replaceChildren(at("hello"));
  at("hello").hidden = false;
  field.focus();
});

document.querySelectorAll("[data-starter]").forEach((starter) => starter.addEventListener("click", () => {
  field.focus();
  ask(starter.textContent);
}));

function milestone(version, votes) {
  const yours = votes === 0 ? "" : `, trained on ${votes === 1 ? "your vote" : `${votes} of your votes`}`;
  const text = votes === 0 ? `Policy ${version} is live` : `A new policy${yours}, is live: version ${version}`;
  if (!turns.length) say(text);
  else append(make("p", { class: "milestone", "data-policy": version }, [make("span", {}, [text])]));
}

/** Show a note while there is something to say. */
function note(id, words) {
  at(id).hidden = !words;
  at(id).textContent = words;
}

function showStatus(now) {
  live.dataset.state = "up";
  live.textContent = `policy ${now.policy_version}, reward ${now.reward_version}`;
  at("policy-version").textContent = now.policy_version;
  at("reward-version").textContent = now.reward_version;
  for (const name of ["received", "stored", "learned"]) at(`votes-${name}`).textContent = now.votes[name];
  const stopped = now.learner_stopped.join("; ");
  note("learning-stopped", stopped && `Learning has stopped: ${stopped}. Votes are kept; they are learned once an operator lets it go on.`);
  const newer = now.refused.filter(({ kind, number }) => number > now[`${kind}_version`]);
  const refused = newer.map(({ kind, number, reason }) => `${kind} ${number} (${reason})`).join("; ");
  note("versions-refused", refused && `Not taken into service: ${refused}. What served before still does.`);
  at("base-model").textContent = `Policy 0 is the bare model, ${String(now.base_model).split("/").at(-1)}.`;
}

/** Without a session, which only browsers on the server's machine get, nothing here can work: say what does, and stop asking. */
function showElsewhere() {
  document.querySelectorAll(".port").forEach((place) => { place.textContent = location.port || 80; });
  at("elsewhere").hidden = false;
  document.querySelectorAll("main button, main textarea, main input").forEach((control) => { control.disabled = true; });
}

/** Show the server's state, move the receipts on, and tell when a policy that learned this page's votes has gone live. */
async function look() {
  try {
    const now = await status();
    receipts.tell(now.learner_stopped.length > 0, now.reward_version);
    await receipts.refresh(now.policy_version !== livePolicy);
    showStatus(now);
    if (newestPolicy !== null && now.policy_version > newestPolicy) milestone(now.policy_version, receipts.learnedBetween(newestPolicy, now.policy_version));
    livePolicy = now.policy_version;
    newestPolicy = Math.max(newestPolicy, livePolicy);
  } catch (error) {
    live.dataset.state = "away";
    live.textContent = error.status ? error.message : "the server is away, trying again";
    if (error.status === 401) return showElsewhere();
  }
  setTimeout(look, document.hidden ? HIDDEN_POLL_MS : POLL_MS);
}

look();
