"""The gaps of the lessons: what the reader writes, the cases that check it, the mistakes that readers make.

The solution is a function of `plain`. A mistake is an edit of the solution's source, so that it stays a mistake of
the code as it is; whoever's function behaves like it is told so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from warp_nb.algorithm import plain
from warp_nb.course import cases
from warp_nb.course.cases import Arguments

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mistake:
    """`edits` (old, new) of the solution's source, each old text in it once; `says` is what the reader is told."""

    says: str
    edits: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gap:
    """A function that the reader writes. `asks` is the docstring of its stub."""

    solution: Function
    lesson: int
    asks: str
    cases: Callable[[], list[Arguments]]
    mistakes: tuple[Mistake, ...]

    @property
    def name(self) -> str:
        """Of the function."""
        return self.solution.__name__


def mistaken(gap: Gap, mistake: Mistake) -> Function:
    """The solution with the mistake made in it. Raises ValueError for an edit that does not fit the source."""
    source = inspect.getsource(gap.solution)
    for old, new in mistake.edits:
        if source.count(old) != 1:
            raise ValueError(f"{gap.name}: {old!r} must occur once in the solution, found {source.count(old)} times")
        source = source.replace(old, new)
    return defined(source, gap.name, dict(vars(plain)))


def defined(source: str, name: str, namespace: dict[str, Any]) -> Function:
    """The function `name` that `source` defines in `namespace`."""
    code = compile("from __future__ import annotations\n" + source, f"<{name}>", "exec")
    exec(code, namespace)
    return namespace[name]


def wrong(says: str, *edits: tuple[str, str]) -> Mistake:
    """A mistake of one or more edits."""
    return Mistake(says, edits)


SLERP_END = "return torch.sin((1 - lam) * omega) / sine * d1 + torch.sin(lam * omega) / sine * d2"
WINS = "(chosen > rejected).float() + 0.5 * (chosen == rejected).float()"
ALL_RUNS = "policies = [run(init, i, m) for m in range(1, M + 1)]"
CHAINED = """policies = [run(init, i, 1)]
        for m in range(2, M + 1):
            policies.append(run(policies[-1], i, m))
        #"""

GAPS = {
    gap.name: gap
    for gap in (
        Gap(
            plain.task_vector,
            1,
            "δ = θ − θ_init для каждого тензора: словари {имя: тензор} -> такой же словарь.",
            cases.task_vector_cases,
            (
                wrong(
                    "Знак: вычтено θ из θ_init. Вектор задачи ведёт от начала к обученным весам.",
                    ("policy[name] - init[name]", "init[name] - policy[name]"),
                ),
                wrong(
                    "θ_init не вычтено: возвращены сами веса, а нужна их разность с началом.",
                    ("policy[name] - init[name]", "policy[name]"),
                ),
                wrong("Веса сложены, а нужна разность.", ("policy[name] - init[name]", "policy[name] + init[name]")),
                wrong(
                    "Векторы поделены на свою длину. WARP берёт δ как есть: длина — часть того, что выучено.",
                    ("policy[name] - init[name]", "(policy[name] - init[name]) / (policy[name] - init[name]).norm()"),
                ),
                wrong(
                    "Функция изменила сами веса политики: `-=` и `sub_` пишут на место. Нужен новый тензор.",
                    ("policy[name] - init[name]", "policy[name].sub_(init[name])"),
                ),
            ),
        ),
        Gap(
            plain.slerp,
            1,
            "SLERP: d1·sin((1−λ)Ω)/sin Ω + d2·sin(λΩ)/sin Ω, где Ω — угол между d1 и d2.\n\n"
            "    d1 и d2 — тензоры одной, любой формы; lam — число λ. Если sin Ω не больше 10⁻³ или это NaN\n"
            "    (один из векторов нулевой), вместо формулы — LERP.",
            cases.slerp_cases,
            (
                wrong(
                    "λ и 1 − λ поменялись местами: при λ = 0 должно получиться d1.",
                    (SLERP_END, "return torch.sin(lam * omega) / sine * d1 + torch.sin((1 - lam) * omega) / sine * d2"),
                ),
                wrong(
                    "Это LERP: взвешенная сумма идёт по хорде, а не по дуге.",
                    ("if sine.isnan() or sine <= 1e-3:", "if True:"),
                ),
                wrong(
                    "Косинус не поделён на длины векторов: cos Ω = d1·d2 / (‖d1‖‖d2‖).",
                    (" / (d1.norm() * d2.norm())", ""),
                ),
                wrong(
                    "Векторы поделены на свою длину. Углу длины не нужны, а в сумму d1 и d2 входят как есть.",
                    (
                        SLERP_END,
                        "return (torch.sin((1 - lam) * omega) / sine * d1 / d1.norm() "
                        "+ torch.sin(lam * omega) / sine * d2 / d2.norm())",
                    ),
                ),
                wrong(
                    "Забыто деление на sin Ω.",
                    (SLERP_END, "return torch.sin((1 - lam) * omega) * d1 + torch.sin(lam * omega) * d2"),
                ),
                wrong(
                    "Угол взят в градусах, а torch.sin ждёт радианы.",
                    (
                        "omega = torch.acos(cosine.clamp(-1, 1))",
                        "omega = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))",
                    ),
                    ("if sine.isnan() or sine <= 1e-3:", "if not torch.sin(torch.deg2rad(omega)) > 1e-3:"),
                ),
                wrong(
                    "У параллельных или нулевых векторов вышло NaN: sin Ω = 0, там нужен LERP.",
                    ("if sine.isnan() or sine <= 1e-3:", "if False:"),
                ),
            ),
        ),
        Gap(
            plain.liti,
            1,
            "LITI, строка 12: (1 − η)·θ_init + η·θ_slerp для каждого тензора; eta — число η.",
            cases.liti_cases,
            (
                wrong(
                    "η и 1 − η поменялись местами: при η = 0 должно остаться θ_init.",
                    ("(1 - eta) * init[name] + eta * merged[name]", "eta * init[name] + (1 - eta) * merged[name]"),
                ),
                wrong("Забыто слагаемое (1 − η)·θ_init.", ("(1 - eta) * init[name] + ", "")),
                wrong(
                    "θ_init взято целиком, а его доля 1 − η: сумма весов должна быть единицей.",
                    ("(1 - eta) * init[name]", "init[name]"),
                ),
                wrong(
                    "η не использована: всегда взята середина.",
                    ("(1 - eta) * init[name] + eta * merged[name]", "0.5 * init[name] + 0.5 * merged[name]"),
                ),
                wrong(
                    "Функция изменила θ_init: `mul_` и `lerp_` пишут на место. Начало ещё понадобится.",
                    ("(1 - eta) * init[name] + eta * merged[name]", "init[name].lerp_(merged[name], eta)"),
                ),
            ),
        ),
        Gap(
            plain.bradley_terry_loss,
            2,
            "−log σ(r_chosen − r_rejected), среднее по парам.\n\n"
            "    chosen и rejected — награды двух сторон, [B] и [B]; вернуть тензор из одного числа.",
            cases.bradley_terry_cases,
            (
                wrong(
                    "Знак: это логарифм правдоподобия, а минимизируют его с минусом.", ("-F.logsigmoid", "F.logsigmoid")
                ),
                wrong(
                    "Разность перевёрнута: лучший текст — chosen, его оценка стоит первой.",
                    ("chosen - rejected)", "rejected - chosen)"),
                ),
                wrong("Сумма по парам вместо среднего: потеря зависит от размера пакета.", (".mean()", ".sum()")),
                wrong(
                    "Забыт логарифм: −σ(Δ) вместо −log σ(Δ). У такой потери почти нет градиента там, где пара "
                    "упорядочена совсем неверно.",
                    ("F.logsigmoid", "torch.sigmoid"),
                ),
                wrong(
                    "Среднее взято до логистической функции: средняя разность вместо средней потери.",
                    ("F.logsigmoid(chosen - rejected).mean()", "F.logsigmoid((chosen - rejected).mean())"),
                ),
                wrong(
                    "Учтена только оценка лучшего текста. Модель Брэдли — Терри знает лишь разности.",
                    ("chosen - rejected)", "chosen)"),
                ),
            ),
        ),
        Gap(
            plain.pair_accuracy,
            2,
            "Доля пар, где награда chosen больше награды rejected; ничья — половина пары.\n\n"
            "    chosen и rejected — награды [B] и [B]; вернуть float, не тензор.",
            cases.pair_accuracy_cases,
            (
                wrong(
                    "Ничья засчитана как победа: модель, которая всем ставит одно и то же, получила бы 100 %.",
                    (WINS, "(chosen >= rejected).float()"),
                ),
                wrong(
                    "Ничья засчитана как поражение. Это половина пары: постоянная модель угадывает 50 %.",
                    (WINS, "(chosen > rejected).float()"),
                ),
                wrong(
                    "Стороны перепутаны: считается доля пар, где выше худший текст.",
                    ("(chosen > rejected)", "(rejected > chosen)"),
                ),
                wrong(
                    "Сравнение с нулём. У оценок нет нуля: смысл имеет только разность внутри пары.",
                    (WINS, "(chosen > 0).float()"),
                ),
                wrong("Возвращено число пар, а нужна доля.", ("wins.mean()", "wins.sum()")),
                wrong("Это средняя разность оценок, а не доля верно упорядоченных пар.", (WINS, "chosen - rejected")),
            ),
        ),
        Gap(
            plain.token_log_probs,
            3,
            "Логарифм вероятности каждого токена продолжения при температуре: [B, C, V] -> [B, C].\n\n"
            "    logits [B, C, V], tokens int64 [B, C], mask bool [B, C]; там, где mask ложна, — ноль.",
            cases.token_log_probs_cases,
            (
                wrong(
                    "Температура не использована: выбирали из softmax(logits / temperature), той же мерой и считайте.",
                    ("(logits / temperature)", "logits"),
                ),
                wrong("На температуру умножено, а нужно делить.", ("logits / temperature", "logits * temperature")),
                wrong(
                    "Температурой поделён готовый логарифм: делить нужно logits, до log_softmax.",
                    ("(logits / temperature).log_softmax(-1)", "logits.log_softmax(-1) / temperature"),
                ),
                wrong("Это вероятности, а не их логарифмы.", (".log_softmax(-1)", ".softmax(-1)")),
                wrong(
                    "Нет log_softmax: взяты сами logits, они не нормированы.",
                    ("(logits / temperature).log_softmax(-1)", "logits / temperature"),
                ),
                wrong(
                    "log_softmax взят не по словарю: словарь — последняя ось.", (".log_softmax(-1)", ".log_softmax(1)")
                ),
                wrong(
                    "Маска не использована: в сумму попадут токены после конца продолжения (pad).",
                    (".masked_fill(~mask, 0.0)", ""),
                ),
                wrong("Маска перевёрнута: обнулены токены самого продолжения.", ("(~mask, 0.0)", "(mask, 0.0)")),
            ),
        ),
        Gap(
            plain.token_kl,
            3,
            "KL(p‖q) следующего токена по всем V токенам: два тензора [B, C, V] -> [B, C].\n\n"
            "    Обе модели при одной температуре; там, где mask ложна, — ноль.",
            cases.token_kl_cases,
            (
                wrong(
                    "Модели перепутаны: это KL(q‖p). Среднее берётся по p, по той, чьё имя первое.",
                    ("log_p.exp() * (log_p - log_q)", "log_q.exp() * (log_q - log_p)"),
                ),
                wrong("Знак: вышло −KL, а расстояние не бывает отрицательным.", ("(log_p - log_q)", "(log_q - log_p)")),
                wrong(
                    "Разности логарифмов сложены без весов p: токен словаря весит столько, какова его вероятность.",
                    ("log_p.exp() * (log_p - log_q)", "log_p - log_q"),
                ),
                wrong(
                    "Среднее по словарю вместо суммы: KL стала меньше в размер словаря раз.", (".sum(-1)", ".mean(-1)")
                ),
                wrong("Температура применена не к обеим моделям.", ("(logits_q / temperature)", "logits_q")),
                wrong(
                    "Маска не использована: посчитаны позиции после конца продолжения.",
                    (".masked_fill(~mask, 0.0)", ""),
                ),
                wrong(
                    "Веса взяты у q, а логарифм отношения — p к q: такое среднее бывает отрицательным.",
                    ("log_p.exp()", "log_q.exp()"),
                ),
            ),
        ),
        Gap(
            plain.regularised_reward,
            3,
            "r_β(y) = r(x, y) − β·log(π(y|x) / π_ema(y|x)), строка 7. Вернуть [B] без графа: detach().\n\n"
            "    rewards [B]; log_probs и anchor_log_probs [B, C], по токенам, с нулями после конца.",
            cases.regularised_reward_cases,
            (
                wrong(
                    "Знак: штраф прибавлен. Так политику награждают за уход от якоря.",
                    ("rewards - beta", "rewards + beta"),
                ),
                wrong("Забыта β: штраф взят в полную силу.", ("beta * log_ratio", "log_ratio")),
                wrong(
                    "Среднее по токенам вместо суммы: вероятность продолжения — произведение, её логарифм — сумма.",
                    (".sum(1)", ".mean(1)"),
                ),
                wrong(
                    "r_β не отделена от графа: нужен detach(), иначе по ней тоже пройдёт градиент.", (".detach()", "")
                ),
                wrong(
                    "Отношение вероятностей взято без логарифма.",
                    ("(log_probs - anchor_log_probs).sum(1)", "(log_probs - anchor_log_probs).sum(1).exp()"),
                ),
                wrong("Сумма взята по всему пакету: у каждого продолжения штраф свой.", (".sum(1)", ".sum()")),
                wrong("На β умножена и награда.", ("rewards - beta * log_ratio", "beta * (rewards - log_ratio)")),
            ),
        ),
        Gap(
            plain.reinforce_loss,
            3,
            "Потеря, чей градиент — градиент строки 8 с минусом: минус среднее по пакету от r_β(y)·log π(y|x).\n\n"
            "    objective [B] — r_β, константа; log_probs [B, C] — по токенам, с нулями после конца.",
            cases.reinforce_loss_cases,
            (
                wrong("Знак: оптимизатор минимизирует, и без минуса награда будет падать.", ("return -(", "return (")),
                wrong(
                    "Среднее по токенам вместо суммы: короткие продолжения весили бы больше длинных.",
                    (".sum(1)", ".mean(1)"),
                ),
                wrong("Сумма по пакету вместо среднего: шаг зависел бы от размера пакета.", (".mean()", ".sum()")),
                wrong(
                    "Взята вероятность вместо логарифма: в градиенте строки 8 стоит ∇ log π.",
                    ("log_probs.sum(1)", "log_probs.sum(1).exp()"),
                ),
                wrong("Награды нет: так учат повторять всё подряд, хорошее и плохое.", ("objective * ", "")),
                wrong(
                    "Средние взяты по отдельности и перемножены: каждое продолжение должно умножаться на свою награду.",
                    ("(objective * log_probs.sum(1)).mean()", "(objective.mean() * log_probs.sum(1).mean())"),
                ),
                wrong(
                    "log π отделён от графа: градиента нет, обучения тоже.",
                    ("log_probs.sum(1)", "log_probs.detach().sum(1)"),
                ),
            ),
        ),
        Gap(
            plain.ema_update_,
            4,
            "θ_ema ← (1 − μ)·θ_ema + μ·θ для каждого параметра, на месте (строка 9).\n\n"
            "    anchor и policy — модули: берите parameters() под torch.no_grad(). Возвращать ничего не нужно.",
            cases.ema_update_cases,
            (
                wrong(
                    "μ и 1 − μ поменялись местами: при μ = 0,01 якорь должен почти стоять.",
                    ("(1 - mu) * old + mu * new", "mu * old + (1 - mu) * new"),
                ),
                wrong(
                    "Якорь не изменился: присваивание меняет только имя. Пишите на место: copy_ или lerp_.",
                    ("old.copy_((1 - mu) * old + mu * new)", "old = (1 - mu) * old + mu * new"),
                ),
                wrong(
                    "Изменён только первый параметр: цикл кончился слишком рано.",
                    ("old.copy_((1 - mu) * old + mu * new)", "old.copy_((1 - mu) * old + mu * new)\n        break"),
                ),
                wrong("Забыт множитель 1 − μ: якорь будет расти на каждом шаге.", ("(1 - mu) * old", "old")),
                wrong("Изменена политика, а двигаться должен якорь.", ("old.copy_(", "new.copy_(")),
                wrong("Якорь стал копией политики: средним он так не будет.", ("(1 - mu) * old + mu * new", "new")),
            ),
        ),
        Gap(
            plain.train_run,
            4,
            "Один прогон, строки 4–9: T шагов Adam от θ_init с якорем, который идёт следом.\n\n"
            "    model — образец сети: сам он не меняется, учится его копия, в неё загружается init (веса θ_init).\n"
            "    Якорь — вторая копия, без градиентов. loss_of(policy, anchor) — потеря, строки 6–8 до самого шага.\n"
            "    Вернуть веса обученной политики, словарь.",
            cases.train_run_cases,
            (
                wrong(
                    "Обучена сама model, а не её копия: следующему прогону она достанется испорченной.",
                    ("policy = copy.deepcopy(model)", "policy = model"),
                ),
                wrong(
                    "Веса θ_init не загружены: прогон начат с весов model.", ("policy.load_state_dict(init)", "pass")
                ),
                wrong(
                    "Якорь — та же модель, что и политика, а не её копия: штраф всегда ноль.",
                    ("anchor = copy.deepcopy(policy).requires_grad_(False)", "anchor = policy"),
                ),
                wrong(
                    "Якорь начат с весов model, а в строке 4 оба начинают с θ_init.",
                    ("copy.deepcopy(policy).requires_grad_(False)", "copy.deepcopy(model).requires_grad_(False)"),
                ),
                wrong(
                    "Градиенты не обнуляются: каждый шаг прибавляет новый к старым.", ("optimizer.zero_grad()", "pass")
                ),
                wrong(
                    "Якорь стоит: после шага оптимизатора нужна строка 9.", ("ema_update_(anchor, policy, mu)", "pass")
                ),
                wrong(
                    "Оптимизатор создан на каждом шаге заново: Adam забывает свои средние.",
                    (
                        "loss.backward()",
                        "loss.backward()\n        optimizer = torch.optim.Adam(policy.parameters(), lr=lr)",
                    ),
                ),
            ),
        ),
        Gap(
            plain.merge,
            5,
            "Строка 11: θ_init + slerp векторов задачи, в каждом слое свой угол.\n\n"
            '    blocks(init, "layer") даёт {слой: имена его тензоров}: склейте их δ в один вектор, после slerp\n'
            "    разрежьте обратно. Больше двух политик — по очереди, m-я входит с λ = 1/m (ур. 26).\n"
            "    Вернуть словарь с теми же именами, что у init. Если у тензора два имени (общие веса), в blocks стоит\n"
            "    одно; второму дайте тот же слитый тензор: tied_to(init) — это {каждое имя: имя в blocks}.",
            cases.merge_cases,
            (
                wrong(
                    "λ всегда 1/2: у третьей и следующих политик λ = 1/m, иначе последняя весит больше всех.",
                    ("1 / m)", "0.5)"),
                ),
                wrong("Угол один на все веса, а нужен свой в каждом слое.", ('"layer"', '"global"')),
                wrong("Угол свой у каждого тензора, а нужен один на слой.", ('"layer"', '"tensor"')),
                wrong(
                    "θ_init не вычтено: SLERP взят от полных весов. Они почти параллельны, и выходит LERP.",
                    ("[task_vector(policy, init) for policy in policies]", "list(policies)"),
                    ("init[name] + piece", "piece"),
                ),
                wrong(
                    "Возвращён слитый вектор задачи: к нему нужно прибавить θ_init.", ("init[name] + piece", "piece")
                ),
                wrong(
                    "Это среднее (LERP), а в строке 11 — SLERP.",
                    ("slerp(total, flat[m - 1], 1 / m)", "torch.lerp(total, flat[m - 1], 1 / m)"),
                ),
                wrong(
                    "У тензора два имени (общие веса), а слит он под одним: под другим остались исходные веса.",
                    ("{name: merged[first] for name, first in tied_to(init).items()}", "merged"),
                ),
                wrong(
                    "Слиты только первые две политики.", ("range(2, len(flat) + 1)", "range(2, min(len(flat), 2) + 1)")
                ),
            ),
        ),
        Gap(
            plain.warp,
            5,
            "Алгоритм 1. Вернуть пару: θ_init после строки 12 последней итерации и θ_slerp той же итерации.\n\n"
            "    run(init, i, m) проходит строки 4–9 и возвращает веса θ^m; i и m считаются с единицы.",
            cases.warp_cases,
            (
                wrong(
                    "Нет LITI: следующая итерация начата со слитых весов, строка 12 пропущена.",
                    ("init = liti(init, merged, eta)", "init = merged"),
                ),
                wrong(
                    "LITI тянет к θ_sft. Внутри цикла — к началу своей итерации, к θ_sft ведёт только последний фронт.",
                    ("liti(init, merged, eta)", "liti(sft, merged, eta)"),
                ),
                wrong(
                    "Каждая итерация начата с θ_sft: то, что выучено до неё, потеряно.",
                    ("run(init, i, m)", "run(sft, i, m)"),
                ),
                wrong("Прогоны идут один за другим: каждый должен начинаться с θ_init.", (ALL_RUNS, CHAINED)),
                wrong(
                    "У всех прогонов одно m: одни и те же начала и тот же шум, и сливать нечего.",
                    ("run(init, i, m)", "run(init, i, 1)"),
                ),
                wrong(
                    "θ_init и θ_slerp поменялись местами в LITI.",
                    ("liti(init, merged, eta)", "liti(merged, init, eta)"),
                ),
                wrong(
                    "Векторы задачи отсчитаны от θ_sft, а нужно от начала этой итерации.",
                    ("merge(init, policies)", "merge(sft, policies)"),
                ),
                wrong(
                    "Результаты в другом порядке: сначала θ_init, потом θ_slerp.",
                    ("return init, merged", "return merged, init"),
                ),
            ),
        ),
        Gap(
            plain.front,
            6,
            "Фронт: (1 − η)·θ_sft + η·θ_slerp^I для каждой η из etas -> список словарей весов.",
            cases.front_cases,
            (
                wrong(
                    "Концы перепутаны: при η = 0 должно быть θ_sft.",
                    ("liti(sft, merged, eta)", "liti(merged, sft, eta)"),
                ),
                wrong(
                    "Порядок перевёрнут: веса идут в том же порядке, что и etas.",
                    ("for eta in etas", "for eta in reversed(etas)"),
                ),
                wrong("η не использована: все точки одинаковы.", ("liti(sft, merged, eta)", "liti(sft, merged, 0.5)")),
                wrong(
                    "θ_slerp принят за вектор задачи: θ_sft + η·θ_slerp уходит далеко от обеих точек.",
                    ("liti(sft, merged, eta)", "{name: sft[name] + eta * merged[name] for name in sft}"),
                ),
                wrong(
                    "Каждая точка отсчитана от предыдущей: отрезок один, и начало у него одно, θ_sft.",
                    ("[liti(sft, merged, eta) for eta in etas]", "[sft := liti(sft, merged, eta) for eta in etas]"),
                ),
            ),
        ),
        Gap(
            plain.best_within,
            6,
            "Точка с наибольшей наградой среди тех, чья KL не больше kl_budget.\n\n"
            "    points — список словарей с числами eta, reward, kl; хотя бы один в бюджет помещается.",
            cases.best_within_cases,
            (
                wrong("Бюджет не использован: взята наибольшая награда из всех.", ('if point["kl"] <= kl_budget', "")),
                wrong("Неравенство перевёрнуто: остались те, кто вышел за бюджет.", ("<= kl_budget", ">= kl_budget")),
                wrong(
                    "Строгое неравенство: точка ровно на границе бюджета тоже допустима.",
                    ("<= kl_budget", "< kl_budget"),
                ),
                wrong(
                    "Взята самая далёкая из допустимых точек. Дальше — не значит лучше: выбирайте по награде.",
                    ('point["reward"]', 'point["kl"]'),
                ),
                wrong("Взята наименьшая награда.", ("max(allowed", "min(allowed")),
            ),
        ),
    )
}
"""By name, in the order of the lessons."""
