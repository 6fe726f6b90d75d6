"use strict";
/* What happens meanwhile: place in the queue, steps with the time that is left, windows as they are finished. */
const DOING = {
  place: "Looking at the blur, place",
  "kernel step": "Estimating the blur, step",
  window: "Restoring, window",
};
let until = null;  // when it is expected to be done, ms of performance.now()

function waiting(text) {
  until = null;
  $("doing").textContent = text;
  $("bar").removeAttribute("value");
  countDown();
}
function countDown() {
  const left = until === null ? null : Math.max(0, Math.round((until - performance.now()) / 1000));
  const minutes = left >= 90 ? `${Math.round(left / 60)} min` : `${left} s`;
  $("seconds").textContent = left === null ? "" : left === 0 ? "· nearly done" : `· about ${minutes} left`;
}
const happened = {
  queue({ ahead }) {
    if (ahead > 0) waiting(ahead === 1 ? "One photograph is before yours." : `${ahead} photographs are before yours.`);
    else waiting("Your photograph is next: starting …");
  },
  step({ stage, done, total, share, seconds_left: left }) {
    const number = total > 1 ? ` ${Math.min(done + 1, total)} of ${total}` : "";
    $("doing").textContent = share === 1 ? "Packing the result …" : `${DOING[stage] ?? stage}${number}`.replace(/, \w+$/, " …");
    $("bar").value = share;
    until = left === null ? null : performance.now() + 1000 * left;
    countDown();
  },
  window({ left, top, width, height, image }) {
    const picture = new Image(), factor = $("growing").factor;
    picture.onload = () => {
      if (factor) $("growing").getContext("2d").drawImage(picture, factor * left, factor * top, factor * width, factor * height);
    };
    picture.src = `data:image/jpeg;base64,${image}`;
  },
};

/* Follow the events of an answer to its last one, and return what that says: the result, or an error. */
async function lastEvent(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the stream broke off");
    let from = Math.max(0, text.length - 1);
    text += value;
    for (let end; (end = text.indexOf("\n\n", from)) >= 0; from = 0) {
      const [, name, data] = /^event: (\w+)\ndata: (.*)$/.exec(text.slice(0, end)) ?? [];
      text = text.slice(end + 2);
      if (name === "result" || name === "error") return JSON.parse(data);
      if (name) happened[name]?.(JSON.parse(data));
    }
  }
}

/* The photograph, enlarged smoothly by the browser, at once: windows are drawn onto it. A TIFF it cannot show. */
const MOST_PIXELS = 4e6;
function enlarge(scale) {
  const preview = $("preview"), canvas = $("growing");
  show("growing", !preview.hidden);
  if (preview.hidden) return;
  const width = scale * preview.naturalWidth, height = scale * preview.naturalHeight;
  canvas.factor = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  Object.assign(canvas, { width: Math.round(canvas.factor * width), height: Math.round(canvas.factor * height) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(preview, 0, 0, canvas.width, canvas.height);
}
