// Keeps the page current, and turns it grey when the service is not heard. Without it the page is
// whole: forms are forms, and the browser loads it again from time to time.
(() => {
  "use strict";
  const SILENCE = 10000, OFTEN = 5000, ALONE = 7000;
  const banner = document.getElementById("unheard");
  const since = document.getElementById("unheard-for");
  let heard = Date.now(), renewed = Date.now(), digest = null, renewing = false, source = null;

  const hear = () => {
    heard = Date.now();
    const pulse = document.getElementById("pulse");
    if (pulse) {
      pulse.classList.remove("beat");
      void pulse.offsetWidth;
      pulse.classList.add("beat");
    }
  };

  const isTouched = (part) => {
    const at = document.activeElement;
    return part.contains(at) && at.matches("input, select, textarea");
  };

  const place = (part) => {
    const at = document.activeElement;
    if (!part.contains(at)) return null;
    const all = [...part.querySelectorAll("a, button, summary, select, input")];
    return all.indexOf(at);
  };

  const swap = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    for (const part of document.querySelectorAll("[data-live][id]")) {
      const next = fresh.getElementById(part.id);
      if (!next || isTouched(part) || part.isEqualNode(next)) continue;
      const open = [...part.querySelectorAll("details")].map((one) => one.open);
      const at = place(part);
      part.replaceWith(next);
      next.querySelectorAll("details").forEach((one, n) => { one.open = Boolean(open[n]); });
      if (at !== null) {
        const all = next.querySelectorAll("a, button, summary, select, input");
        if (all[at]) all[at].focus({ preventScroll: true });
      }
    }
  };

  const renew = async () => {
    if (renewing) return;
    renewing = true;
    renewed = Date.now();
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(9000) });
      if (answer.redirected && new URL(answer.url).pathname === "/login") {
        location.reload();
      } else if (answer.ok) {
        swap(await answer.text());
        hear();
      }
    } catch { /* the page turns grey */ } finally {
      renewing = false;
    }
  };

  const listen = () => {
    source = new EventSource(document.body.dataset.events);
    source.onmessage = (event) => {
      hear();
      const [now] = JSON.parse(event.data);
      const changed = digest !== null && now !== digest;
      digest = now;
      if (!document.hidden && (changed || Date.now() - renewed >= OFTEN)) renew();
    };
    source.onerror = () => {
      // A browser does not try again by itself after an answer that is no stream.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, ALONE);
    };
  };

  setInterval(() => {
    const silence = Date.now() - heard;
    if (silence > ALONE && !document.hidden && Date.now() - renewed >= ALONE) renew();
    const unheard = silence > SILENCE;
    document.body.classList.toggle("unheard", unheard);
    banner.hidden = !unheard;
    if (unheard) since.textContent = `for ${Math.round(silence / 1000)} s`;
  }, 1000);

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) renew();
  });

  const filter = document.getElementById("filter");
  if (filter) {
    let timer;
    const go = () => {
      const query = new URLSearchParams(new FormData(filter));
      for (const [name, value] of [...query]) if (!value) query.delete(name);
      history.replaceState(null, "", query.size ? `/?${query}` : "/");
      renew();
    };
    filter.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(go, 250);
    });
    filter.addEventListener("submit", (event) => {
      event.preventDefault();
      go();
    });
  }

  listen();
})();
