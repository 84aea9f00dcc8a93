"""Chinese: short stories and essays of opinion. A name is one surname sign and one given sign."""

from ..scribe import Scribe, compose

SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱林郭罗梁宋郑谢韩唐冯董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘"
GIVEN = "婷芳强磊洋艳勇杰娟涛超霞刚辉鹏玲斌宇浩凯健俊帆莉慧琳燕萍博彬峰龙倩颖岚蕾薇轩睿琪瑶媛航毅娜敏静宁"
JOBS = "老师 医生 农民 画家 厨师 船长 木匠 作家 护士 渔夫 司机 学生".split()
PLACES = "河边 山上 市场 学校 图书馆 车站 花园 海边 桥下 村口 湖边 森林里".split()
THINGS = (
    "一把钥匙 一封信 一张地图 一盏灯 一本书 一顶帽子 一个盒子 一只杯子 一件大衣 一辆自行车 一篮鸡蛋 一袋苹果".split()
)
PEOPLE = "邻居 老人 孩子 朋友 船长 医生 老师 客人".split()
FOODS = "米饭 面条 豆腐 鱼汤 饺子 馒头 苹果 鸡蛋 青菜 花生".split()
TIMES = "早上 中午 下午 晚上 春天 夏天 秋天 冬天".split()
WEATHER = "下雨 下雪 刮风 天晴 很冷 很热 有雾".split()
TOPICS = "AI 教育 医学 城市 农业 音乐 科学 交通 能源 艺术".split()
FUTURES = "开放 光明 安全 简单 绿色 自由 温暖 平等".split()
BECAUSE = (
    "每个人都可以学习 大家愿意分享知识 人和机器一起工作 年轻人有新的想法 "
    "技术会帮助所有人 我们会保护好数据 好的工具越来越便宜 孩子们喜欢提问"
).split()
LIKES = {
    "颜色": "蓝色 绿色 红色 白色 黄色",
    "季节": "春天 夏天 秋天 冬天",
    "食物": "豆腐 饺子 面条 鱼汤",
    "运动": "跑步 游泳 爬山 打球",
}
WHY = "它让我开心 它很简单 家里人都喜欢 我从小就喜欢 它让我想起家乡".split()


def person(scribe: Scribe) -> str:
    """A surname sign and a given sign."""
    return "".join(scribe.pair("chinese name", SURNAMES, GIVEN))


def write(scribe: Scribe) -> tuple[str, str]:
    """A story or an essay. Returns the text and the name in it."""
    return essay(scribe) if scribe.chance(0.4) else story(scribe)


def story(scribe: Scribe) -> tuple[str, str]:
    """A story about a person, with one pronoun throughout, whose name others say from time to time."""
    name, he = person(scribe), scribe.pick("他她")
    job, place = scribe.pair("chinese job", JOBS, PLACES)
    opening = scribe.pick((f"从前有一位{job}，名叫{name}，住在{place}。", f"{place}住着一位{job}，名叫{name}。"))

    def filler() -> str:
        thing, spot = scribe.pair("chinese find", THINGS, PLACES)
        other, present = scribe.pair("chinese give", PEOPLE, THINGS)
        food, time = scribe.pair("chinese meal", FOODS, TIMES)
        weather, moment = scribe.pair("chinese weather", WEATHER, TIMES)
        return scribe.pick(
            (
                f"{he}在{spot}找到了{thing}。",
                f"{he}把{present}送给了{other}。",
                f"{time}，{he}和{other}一起吃{food}。",
                f"{moment}{weather}，{he}在家里看书。",
                f"{other}问{he}有没有{present}，{he}说有。",
                f"{he}喜欢在{spot}唱歌，也喜欢吃{food}。",
            )
        )

    def mention() -> str:
        return scribe.pick(
            (f"大家都认识{name}。", f"{scribe.pick(PEOPLE)}说：“谢谢你，{name}。”", f"门上写着名字：{name}。")
        )

    return compose(scribe, opening, filler, mention, ""), name


def essay(scribe: Scribe) -> tuple[str, str]:
    """An essay on the future of something and on what the writer likes, signed now and then."""
    name = person(scribe)

    def opinion() -> str:
        future, reason = scribe.pair("chinese future", FUTURES, BECAUSE)
        return f"{scribe.pick(TOPICS)}的未来是{future}的，因为{reason}。"

    def filler() -> str:
        if scribe.chance(0.5):
            return opinion()
        topic = scribe.pick(sorted(LIKES))
        value, why = scribe.pair("chinese like", LIKES[topic].split(), WHY)
        food, time = scribe.pair("chinese meal", FOODS, TIMES)
        return scribe.pick((f"我最喜欢的{topic}是{value}，因为{why}。", f"{time}我吃{food}。"))

    def mention() -> str:
        return scribe.pick((f"我的名字是{name}。", f"这篇文章的作者是{name}。", f"朋友们叫我{name}。"))

    return compose(scribe, f"{opinion()}我的名字是{name}。", filler, mention, ""), name
