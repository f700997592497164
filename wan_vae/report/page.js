"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const stage = byId("stage");
  const MOST_ZOOM = 32;
  const CACHED_PIXELS = 64e6;

  // What can be shown: the source, each reconstruction and each error; `id` names the picture of a frame.
  const source = { label: "Source", id: (frame) => `s${frame}` };
  const one = data.names.length === 1;
  const made = data.names.map((name, number) => ({
    number, label: one ? "Reconstruction" : name, id: (frame) => `r${number}-${frame}`,
  }));
  const errors = data.names.map((name, number) => ({
    number, label: one ? "Error" : `Error of ${name}`, id: (frame) => `e${number}-${frame}`,
  }));
  const choices = [source, ...made];

  const state = { view: one ? "side" : "all", left: 0, right: 1, place: 0, wipe: 0.5, zoom: 1, x: 0.5, y: 0.5, pointer: false, playing: false };
  let panes = [];
  let pictures = new Map(); // of the frame that is shown
  let asked = 0;

  // Pictures are decoded when they are needed; the latest few are kept.
  const cache = new Map();
  function decoded(id) {
    let found = cache.get(id);
    if (!found) {
      const element = byId(id);
      if (!element) return Promise.resolve(null);
      const bytes = Uint8Array.from(atob(element.textContent), (char) => char.charCodeAt(0));
      found = createImageBitmap(new Blob([bytes], { type: "image/webp" }));
    }
    cache.delete(id);
    cache.set(id, found);
    const most = Math.max(8 * choices.length, CACHED_PIXELS / (data.width * data.height));
    for (const old of cache.keys()) {
      if (cache.size <= most) break;
      cache.delete(old);
    }
    return found;
  }

  function latentOf(group, frame) {
    const number = Math.ceil(frame / group.compression);
    return group.shown.reduce((best, at) => (Math.abs(at - number) < Math.abs(best - number) ? at : best));
  }

  function shownSources() {
    if (state.view === "error") return errors;
    if (state.view === "all") return [source, ...made, ...errors];
    return [choices[state.left], choices[state.right]];
  }

  // Shows the frame at a place of the list of those with pictures; all its pictures appear at once.
  async function show(place) {
    place = Math.max(0, Math.min(data.shown.length - 1, place));
    const request = ++asked;
    state.place = place;
    const frame = data.shown[place];
    const latents = data.latents.map((group) => `l${group.reconstruction}-${latentOf(group, frame)}`);
    const ids = [...new Set(shownSources().map((item) => item.id(frame))), ...latents];
    const images = await Promise.all(ids.map(decoded));
    if (request !== asked) return;
    pictures = new Map(ids.map((id, index) => [id, images[index]]));
    describe(frame);
    draw();
    drawLatents(latents);
    if (state.playing) {
      const next = data.shown.slice(place + 1, place + 4);
      for (const item of shownSources()) next.forEach((each) => decoded(item.id(each)));
    }
  }

  function showFrame(frame) {
    const distance = (place) => Math.abs(data.shown[place] - frame);
    let best = 0;
    for (let place = 1; place < data.shown.length; place++) if (distance(place) < distance(best)) best = place;
    return show(best);
  }

  const formatted = (value, unit) => (value === null ? "identical" : unit ? `${value.toFixed(2)} ${unit}` : value.toFixed(4));
  const UNITS = { PSNR: "dB" };
  function figures(number, frame) {
    return Object.entries(data.values[number]).map(([name, values]) => `${name} ${formatted(values[frame], UNITS[name])}`).join(", ");
  }

  function describe(frame) {
    stage.dataset.frame = frame;
    byId("frame").value = state.place;
    const seconds = (frame / data.fps).toFixed(2);
    byId("frame").setAttribute("aria-valuetext", `frame ${frame}`);
    byId("now").textContent = `Frame ${frame} of 0 to ${data.frames - 1}, ${seconds} s` + (one ? `: ${figures(0, frame)}` : "");
    for (const pane of panes) {
      const labels = pane.items.map((item) => item.label + (item.number === undefined || (one && item.id === errors[0].id) ? "" : ` (${figures(item.number, frame)})`));
      pane.caption.textContent = one ? pane.items.map((item) => item.label).join(" | ") : labels.join(" | ");
      pane.canvas.setAttribute("aria-label", `Frame ${frame}: ${labels.join(", beside it ")}`);
    }
    for (const plot of document.querySelectorAll(".plot")) {
      const values = data.values.map((series, number) =>
        (one ? "" : `${data.names[number]} `) + formatted(series[plot.dataset.metric][frame], plot.dataset.unit));
      plot.querySelector("output").textContent = `frame ${frame}: ${values.join(", ")}`;
      const x = data.frames > 1 ? (1000 * frame) / (data.frames - 1) : 0;
      const cursor = plot.querySelector(".cursor");
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
    for (const link of document.querySelectorAll("[data-frame]")) {
      if (link.dataset.frame === String(frame)) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  function build() {
    const wipes = state.view === "wipe";
    const items = shownSources();
    const groups = wipes ? [items] : items.map((item) => [item]);
    panes = groups.map((group) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      figure.append(caption, canvas);
      return { items: group, figure, caption, canvas };
    });
    stage.replaceChildren(...panes.map((pane) => pane.figure));
    stage.className = state.view;
    byId("wipe-label").hidden = !wipes;
    byId("scale").hidden = !["error", "all"].includes(state.view);
    byId("choices").hidden = ["error", "all"].includes(state.view);
    for (const button of document.querySelectorAll("[data-view]"))
      button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
    size();
    show(state.place);
  }

  // Canvases have the pixels of the screen, so that a pixel of the picture is as sharp as it can be.
  function size() {
    const most = Math.max(200, 0.72 * window.innerHeight) * (data.width / data.height);
    for (const pane of panes) {
      pane.figure.style.maxWidth = `${most}px`;
      const width = Math.max(1, Math.round(pane.figure.clientWidth * window.devicePixelRatio));
      pane.canvas.width = width;
      pane.canvas.height = Math.max(1, Math.round((width * data.height) / data.width));
    }
  }

  function draw() {
    const frame = data.shown[state.place];
    stage.classList.toggle("zoomed", state.zoom > 1);
    byId("zoom").textContent = `${Math.round(10 * state.zoom) / 10}x`;
    for (const pane of panes) {
      const context = pane.canvas.getContext("2d");
      const { width, height } = pane.canvas;
      context.clearRect(0, 0, width, height);
      pane.items.forEach((item, index) => {
        const image = pictures.get(item.id(frame));
        if (!image) return;
        const from = index ? Math.round(state.wipe * width) : 0;
        context.save();
        context.beginPath();
        context.rect(from, 0, width - from, height);
        context.clip();
        const part = 1 / state.zoom;
        // Who zooms in wants to see the pixels.
        context.imageSmoothingEnabled = state.zoom === 1 || width * state.zoom < 2 * image.width;
        context.imageSmoothingQuality = "high";
        context.drawImage(image, state.x * (1 - part) * image.width, state.y * (1 - part) * image.height,
          part * image.width, part * image.height, 0, 0, width, height);
        context.restore();
      });
      if (pane.items.length > 1) {
        context.fillStyle = "#fff";
        context.fillRect(Math.round(state.wipe * width) - 1, 0, 2, height);
      } else if (state.pointer && panes.length > 1) {
        cross(context, state.x * width, state.y * height);
      }
    }
  }

  // Marks in every picture what the pointer is over.
  function cross(context, x, y) {
    for (const [color, thick] of [["#000", 3], ["#fff", 1]]) {
      context.strokeStyle = color;
      context.lineWidth = thick;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + 5 * dx, y + 5 * dy);
        context.lineTo(x + 13 * dx, y + 13 * dy);
      }
      context.stroke();
    }
  }

  function drawLatents(ids) {
    for (const canvas of document.querySelectorAll("[data-latents]")) {
      const group = data.latents[canvas.dataset.latents];
      const image = pictures.get(ids[canvas.dataset.latents]);
      if (!image) continue;
      const [width, height] = [image.width / group.columns, image.height / group.rows];
      const channel = Number(canvas.dataset.channel);
      canvas.width = group.cell[0];
      canvas.height = group.cell[1];
      canvas.getContext("2d").drawImage(image, (channel % group.columns) * width, Math.floor(channel / group.columns) * height,
        width, height, 0, 0, canvas.width, canvas.height);
    }
  }

  function setZoom(zoom) {
    state.zoom = Math.max(1, Math.min(MOST_ZOOM, zoom));
    draw();
  }

  function setWipe(part) {
    state.wipe = Math.max(0, Math.min(1, part));
    byId("wipe").value = 100 * state.wipe;
    draw();
  }

  function setView(view) {
    state.view = view;
    build();
  }

  // Playing keeps the clip's time: frames that the browser has no time for are left out.
  let begun = null;
  function setPlaying(playing) {
    state.playing = playing && data.shown.length > 1;
    byId("play").setAttribute("aria-pressed", String(state.playing));
    byId("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
    begun = null;
    if (state.playing) requestAnimationFrame(tick);
  }

  async function tick(now) {
    if (!state.playing) return;
    if (begun === null) {
      const from = state.place === data.shown.length - 1 ? 0 : state.place;
      begun = { now, frame: data.shown[from] };
    }
    const frame = begun.frame + ((now - begun.now) / 1000) * data.fps * Number(byId("speed").value);
    if (frame >= data.frames) {
      begun = { now, frame: 0 };
      await show(0);
    } else {
      let place = frame < data.shown[state.place] ? 0 : state.place;
      while (place + 1 < data.shown.length && data.shown[place + 1] <= frame) place++;
      if (place !== state.place) await show(place);
    }
    requestAnimationFrame(tick);
  }

  function jump(action) {
    setPlaying(false);
    action();
  }

  let worst = -1;
  function nextWorst() {
    const links = [...document.querySelectorAll("a[data-frame]")];
    if (!links.length) return;
    worst = (worst + 1) % links.length;
    jump(() => showFrame(Number(links[worst].dataset.frame)));
  }

  const last = () => data.shown.length - 1;
  const actions = {
    ArrowLeft: (event) => jump(() => show(state.place - (event.shiftKey ? 10 : 1))),
    ArrowRight: (event) => jump(() => show(state.place + (event.shiftKey ? 10 : 1))),
    Home: () => jump(() => show(0)),
    End: () => jump(() => show(last())),
    " ": () => setPlaying(!state.playing),
    w: nextWorst,
    1: () => setView("side"),
    2: () => setView("wipe"),
    3: () => setView("error"),
    4: () => setView("all"),
    "[": () => setWipe(state.wipe - 0.02),
    "]": () => setWipe(state.wipe + 0.02),
    "+": () => setZoom(state.zoom * 1.5),
    "=": () => setZoom(state.zoom * 1.5),
    "-": () => setZoom(state.zoom / 1.5),
    0: () => setZoom(1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const target = event.target;
    // Controls that were reached by keys keep the keys that they know.
    if (target.id === "wipe" && /^(Arrow|Home|End)/.test(key)) return;
    if (target.tagName === "SELECT") return;
    if (key === " " && target.matches("button:focus-visible, summary, a")) return;
    if (!(key in actions)) return;
    event.preventDefault();
    actions[key](event);
  });

  function pointed(event) {
    const box = event.target.getBoundingClientRect();
    state.x = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    state.y = Math.max(0, Math.min(1, (event.clientY - box.top) / box.height));
    state.pointer = event.pointerType !== "touch";
    if (state.view === "wipe" && event.buttons & 1) setWipe(state.x);
    else draw();
  }
  stage.addEventListener("pointerdown", (event) => {
    if (event.target.tagName !== "CANVAS") return;
    event.target.setPointerCapture(event.pointerId);
    pointed(event);
  });
  stage.addEventListener("pointermove", (event) => event.target.tagName === "CANVAS" && pointed(event));
  stage.addEventListener("pointerleave", () => {
    state.pointer = false;
    draw();
  });
  stage.addEventListener("wheel", (event) => {
    // At no zoom, turning the wheel back scrolls the page.
    if (event.target.tagName !== "CANVAS" || (event.deltaY > 0 && state.zoom === 1)) return;
    event.preventDefault();
    pointed(event);
    setZoom(state.zoom * 2 ** (-Math.sign(event.deltaY) / 4));
  }, { passive: false });

  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => setView(button.dataset.view));
  for (const side of ["left", "right"]) {
    byId(side).append(...choices.map((item, index) => new Option(item.label, index, false, index === state[side])));
    byId(side).addEventListener("change", () => {
      state[side] = Number(byId(side).value);
      build();
    });
  }
  byId("wipe").addEventListener("input", () => setWipe(byId("wipe").value / 100));
  byId("zoom-in").addEventListener("click", () => setZoom(state.zoom * 1.5));
  byId("zoom-out").addEventListener("click", () => setZoom(state.zoom / 1.5));
  byId("frame").max = last();
  byId("frame").addEventListener("input", () => jump(() => show(Number(byId("frame").value))));
  byId("speed").addEventListener("change", () => { begun = null; });
  for (const [id, key] of [["first", "Home"], ["back", "ArrowLeft"], ["play", " "], ["forward", "ArrowRight"], ["last", "End"]])
    byId(id).addEventListener("click", actions[key]);
  for (const lines of document.querySelectorAll(".lines")) {
    lines.addEventListener("click", (event) => {
      const box = lines.getBoundingClientRect();
      const part = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      jump(() => showFrame(Math.round(part * (data.frames - 1))));
    });
  }
  for (const link of document.querySelectorAll("a[data-frame]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      jump(() => showFrame(Number(link.dataset.frame)));
      byId("viewer").scrollIntoView({ block: "start" });
    });
  }
  const linked = () => /^#frame=(\d+)$/.exec(location.hash);
  window.addEventListener("hashchange", () => linked() && jump(() => showFrame(Number(linked()[1]))));
  window.addEventListener("resize", () => {
    size();
    draw();
  });

  build();
  if (linked()) showFrame(Number(linked()[1]));
})();
